//! The words that speak to a server which runs already: `status`, `restart`, `scale` and the like.
//!
//! Where that server is follows from the same flags, variables, file and rules as where `run` puts it; nothing is looked for
//! here, only what was said is read.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::OsStringValueParser;
use clap::{Arg, ArgAction, ArgMatches};

use super::Settings;
use super::arguments::{
    Given, Refusal, apply, config_flag, flag, from_environment, from_flags, quoted, shorthand, win,
};
use super::environment::{Environment, Search};
use super::keys;
use super::load::file_of;
use super::units::{count, duration, signal};

/// The most workers that an app may have.
pub const MOST_WORKERS: u32 = 1024;
/// How long requests are held by `pause` when nothing is said.
pub const PAUSE_DEFAULT: Duration = Duration::from_secs(30);
/// For how long requests may be held at least and at most.
pub const PAUSE_RANGE: std::ops::RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(3600);

/// What is asked of a running server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Steering {
    /// Which server.
    pub server: ServerPlace,
    /// What.
    pub ask: Ask,
}

/// Where a running server is to be found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerPlace {
    /// Its control socket lies exactly there.
    Socket(PathBuf),
    /// It lies in this run directory.
    Directory(PathBuf),
    /// Nobody said where: in this run directory, or else in the only one of these places that has a server.
    Likely(PathBuf, Vec<Search>),
}

/// How the number of workers changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// To that number, 0 to [`MOST_WORKERS`].
    To(u32),
    /// By that number, which is not 0.
    By(i32),
}

/// One request to a running server. `None` as an app stands for every app, or the only one.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are what their words on the command line say")]
pub enum Ask {
    /// What it does.
    Status { json: bool },
    /// A rolling restart; with `wait` until it has ended.
    Restart { app: Option<String>, wait: bool },
    /// More or fewer workers.
    Scale { app: Option<String>, change: Change },
    /// A signal to all workers or to one.
    Signal { app: Option<String>, worker: Option<u32>, signal: i32 },
    /// To read the configuration anew and load changed code; with `wait` until the restarts that it causes have ended.
    Reload { app: Option<String>, wait: bool },
    /// To hand the work over to a new process: of that binary, or of the one that the server was started as.
    Upgrade { program: Option<PathBuf>, wait: bool },
    /// To take no more work.
    Drain,
    /// To end.
    Stop { now: bool },
    /// What happens, line by line, until interrupted.
    Events { json: bool },
    /// To hold requests, for so long at most.
    Pause { app: Option<String>, max: Duration },
    /// To let held requests go.
    Resume { app: Option<String> },
}

impl Ask {
    /// The word on the command line.
    pub fn word(&self) -> &'static str {
        match self {
            Ask::Status { .. } => "status",
            Ask::Restart { .. } => "restart",
            Ask::Scale { .. } => "scale",
            Ask::Signal { .. } => "signal",
            Ask::Reload { .. } => "reload",
            Ask::Upgrade { .. } => "upgrade",
            Ask::Drain => "drain",
            Ask::Stop { .. } => "stop",
            Ask::Events { .. } => "events",
            Ask::Pause { .. } => "pause",
            Ask::Resume { .. } => "resume",
        }
    }
}

/// Adds the words to the command line.
pub(super) fn with_words(command: clap::Command) -> clap::Command {
    let json = |help: &'static str| Arg::new("json").long("json").action(ArgAction::SetTrue).help(help);
    let app = || word("app", "APP", "Which app [default: all]");
    let port = || word("port", "PORT", "The server that listens there, as in 3000 or http:3000");
    let max = Arg::new("max").long("max").value_name("DURATION").value_parser(OsStringValueParser::new());
    let switch =
        |name: &'static str, help: &'static str| Arg::new(name).long(name).action(ArgAction::SetTrue).help(help);
    let target = word("target", "APP[:ID]", "Which app and worker, or the signal when it stands alone");
    let words = [
        speaks("status", "Show what the server does").arg(json("As the JSON document")).arg(port()),
        speaks("restart", "Replace all workers without losing a request")
            .arg(app())
            .arg(switch("wait", "Come back when it has ended; 75 when the old workers were kept")),
        speaks("scale", "Change the number of workers")
            .override_usage("production_server scale [FLAGS] [APP] N|+N|-N")
            .arg(word("first", "APP", "Which app [default: all], or the number when it stands alone"))
            .arg(word("second", "N|+N|-N", "How many workers, or how many more or fewer")),
        speaks("signal", "Send a signal to workers")
            .override_usage("production_server signal [FLAGS] [APP[:ID]] SIGNAL")
            .arg(target)
            .arg(word("signal", "SIGNAL", "Which, as in HUP or USR1")),
        speaks("reload", "Read the configuration anew, reopen the logs, and let the workers load changed code")
            .arg(word("app", "APP", "Only let that app's workers load changed code"))
            .arg(switch(
                "wait",
                "Come back when the restarts that it causes have ended; 75 when old workers were kept",
            )),
        speaks("upgrade", "Hand the work over to a new process, without losing a request")
            .arg(word("program", "PATH", "The new binary [default: what lies where the server was started from]"))
            .arg(switch("wait", "Come back when it serves; 75 when it does not, and the old one was kept")),
        speaks("drain", "Take no more connections, finish what is in flight, and end").arg(port()),
        speaks("stop", "Stop the server, and come back when it is gone")
            .arg(switch("now", "Without letting requests finish"))
            .arg(port()),
        speaks("events", "Print what happens until interrupted").arg(json("As JSON, one a line")).arg(port()),
        speaks("pause", "Hold requests until resume").arg(app()).arg(max.help("For how long at most [default: 30s]")),
        speaks("resume", "Let held requests go").arg(app()),
    ];
    command.subcommands(words)
}

/// Reads one of the words.
pub(super) fn read(name: &str, matches: &ArgMatches, environment: &Environment) -> Result<Steering, Refusal> {
    let app = || text(matches, "app");
    let flag = |name| matches.get_flag(name);
    let ask = match name {
        "status" => Ok(Ask::Status { json: flag("json") }),
        "restart" => app().map(|app| Ask::Restart { app, wait: flag("wait") }),
        "scale" => scale(matches),
        "signal" => signal_to(matches),
        "reload" => app().map(|app| Ask::Reload { app, wait: flag("wait") }),
        "upgrade" => upgrade(matches),
        "drain" => Ok(Ask::Drain),
        "stop" => Ok(Ask::Stop { now: flag("now") }),
        "events" => Ok(Ask::Events { json: flag("json") }),
        "pause" => pause(matches),
        "resume" => app().map(|app| Ask::Resume { app }),
        _ => {
            Err(Refusal::usage(format!("error: {} is no command: see production_server --help", quoted(name.as_ref()))))
        }
    };
    Ok(Steering { ask: ask?, server: place(matches, environment)? })
}

/// A word on the command line by its place. That it is missing is said in words of our own.
fn word(name: &'static str, value: &'static str, help: &'static str) -> Arg {
    Arg::new(name).value_name(value).allow_negative_numbers(true).value_parser(OsStringValueParser::new()).help(help)
}

/// A word with the flags that say which server is meant.
fn speaks(name: &'static str, about: &'static str) -> clap::Command {
    let socket = Arg::new("socket")
        .long("socket")
        .value_name("PATH")
        .value_parser(OsStringValueParser::new())
        .conflicts_with_all(["run-dir", "listen"])
        .help("The server's control socket");
    let command = clap::Command::new(name).about(about);
    ["listen", "run-dir"]
        .into_iter()
        .fold(command, |command, name| command.arg(flag(keys::by_name(name)).help_heading("Which server")))
        .arg(config_flag().help_heading("Which server"))
        .arg(socket.help_heading("Which server"))
}

fn text(matches: &ArgMatches, name: &str) -> Result<Option<String>, Refusal> {
    let Some(value) = matches.get_one::<OsString>(name) else { return Ok(None) };
    match value.to_str().filter(|text| !text.is_empty()) {
        Some(text) => Ok(Some(text.to_owned())),
        None => Err(Refusal::usage(format!("error: {}: expected a word in UTF-8", quoted(value)))),
    }
}

fn upgrade(matches: &ArgMatches) -> Result<Ask, Refusal> {
    let program = matches.get_one::<OsString>("program").map(PathBuf::from);
    // The server may have been started elsewhere.
    let program = program.map(|path| std::path::absolute(&path)).transpose();
    let program =
        program.map_err(|error| Refusal::usage(format!("error: upgrade: the path cannot be used: {error}")))?;
    Ok(Ask::Upgrade { program, wait: matches.get_flag("wait") })
}

fn scale(matches: &ArgMatches) -> Result<Ask, Refusal> {
    let (app, number) = last_of(text(matches, "first")?, text(matches, "second")?);
    let refuse = |expected: &str| Refusal::usage(format!("error: scale: {expected}, as in scale 4 or scale +1"));
    let Some(number) = number else { return Err(refuse("expected a number of workers")) };
    let most = u64::from(MOST_WORKERS);
    let by = |text: &str, sign: i32| count(text, 1..=most).map(|number| Change::By(sign * number as i32));
    let change = match number.split_at_checked(1) {
        Some(("+", more)) => by(more, 1),
        Some(("-", fewer)) => by(fewer, -1),
        _ => count(&number, 0..=most).map(|number| Change::To(number as u32)),
    };
    let change = change.map_err(|expected| refuse(&format!("{}: {expected}", quoted(number.as_ref()))))?;
    Ok(Ask::Scale { app, change })
}

fn signal_to(matches: &ArgMatches) -> Result<Ask, Refusal> {
    let (target, name) = last_of(text(matches, "target")?, text(matches, "signal")?);
    let refuse = |expected: &str| Refusal::usage(format!("error: signal: {expected}, as in signal web:2 HUP"));
    let Some(name) = name else { return Err(refuse("expected a signal")) };
    let signal = signal(&name).map_err(|expected| refuse(&format!("{}: {expected}", quoted(name.as_ref()))))?;
    let (app, worker) = match target.as_deref().map(|target| target.rsplit_once(':').ok_or(target)) {
        None => (None, None),
        Some(Err(app)) => (Some(app.to_owned()), None),
        Some(Ok((app, id))) => {
            let id = count(id, 1..=u64::from(u32::MAX));
            let id = id.map_err(|_| refuse("expected a worker's id behind the colon"))?;
            (Some(app.to_owned()).filter(|app| !app.is_empty()), Some(id as u32))
        }
    };
    Ok(Ask::Signal { app, worker, signal })
}

/// Of two words the last is the one that must be there.
fn last_of(first: Option<String>, second: Option<String>) -> (Option<String>, Option<String>) {
    if second.is_some() { (first, second) } else { (None, first) }
}

fn pause(matches: &ArgMatches) -> Result<Ask, Refusal> {
    let max = match text(matches, "max")? {
        None => PAUSE_DEFAULT,
        Some(max) => duration(&max, PAUSE_RANGE).map_err(|expected| {
            Refusal::usage(format!("error: --max {}: {expected}, as in --max 30s", quoted(max.as_ref())))
        })?,
    };
    Ok(Ask::Pause { app: text(matches, "app")?, max })
}

fn place(matches: &ArgMatches, environment: &Environment) -> Result<ServerPlace, Refusal> {
    if let Some(path) = matches.get_one::<OsString>("socket") {
        return Ok(ServerPlace::Socket(path.into()));
    }
    let (listen, run_dir) = (keys::by_name("listen"), keys::by_name("run-dir"));
    let named = matches.contains_id("config");
    let mut given = match file_of(matches, environment) {
        // Mistakes in it are no reason not to find the server that runs.
        Ok(file) => file.map_or_else(Vec::new, |file| file.given),
        Err(refusal) if named => return Err(refusal),
        Err(_) => Vec::new(),
    };
    given.retain(|one: &Given| ["listen", "run-dir"].contains(&one.key.name));
    let from_environment = |key| from_environment(key, environment);
    [listen, run_dir].into_iter().filter_map(from_environment).for_each(|one| win(&mut given, one));
    let mut said = named;
    // Not every word has a port behind it, and clap panics when it is asked for what it does not know.
    if let Ok(Some(port)) = matches.try_get_one::<OsString>("port") {
        let read = shorthand(port)?;
        if read.iter().any(|one| one.key.name != "listen") {
            return Err(Refusal::usage(format!("error: {}: expected a port, as in 3000 or http:3000", quoted(port))));
        }
        said = true;
        read.into_iter().for_each(|one| win(&mut given, one));
    }
    for one in [listen, run_dir].into_iter().filter_map(|key| from_flags(key, matches)) {
        said = true;
        win(&mut given, one);
    }
    given.sort_by_key(|one| one.source.rank());
    let mut settings = Settings::default();
    for one in &given {
        apply(&mut settings, one)?;
    }
    if given.iter().any(|one| one.key.name == "run-dir") {
        return Ok(ServerPlace::Directory(settings.process.run_dir));
    }
    let directory = environment.run_dir(&settings.listening.at);
    if said {
        Ok(ServerPlace::Directory(directory))
    } else {
        Ok(ServerPlace::Likely(directory, environment.run_dirs()))
    }
}
