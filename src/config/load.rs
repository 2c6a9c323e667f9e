//! All places together: flags, shorthands, the environment and the file become one [`Loaded`], or are refused.

use std::ffi::OsString;

use clap::ArgMatches;

use super::arguments::{
    Given, Refusal, Source, WRONG_CONFIGURATION, apply, from_environment, from_flags, shorthand, win,
};
use super::clashes::{Clash, OF_WORKERS, contradictions, place, whole};
use super::environment::Environment;
use super::file::{self, File};
use super::report::{Problem, Severity, report};
use super::{App, Command, ListenAddress, Settings, keys, places, units};

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
    pub(super) given: Vec<Given>,
    pub(super) program: Option<Program>,
    /// The configuration file, if there is one.
    pub file: Option<File>,
}

impl Loaded {
    /// A problem with the value of a key, shown where it was said. `index` is that of the value where there are many; the name is
    /// that of a flag, or `command`.
    pub fn problem(&self, severity: Severity, name: &str, index: usize, title: &str, label: &str) -> Problem {
        let given = self.given.iter().find(|one| one.key.name == name);
        let program = self.program.as_ref().filter(|_| name == "command");
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

    /// What is wrong, as people read it.
    pub fn report(&self, problems: &[Problem]) -> String {
        let none = file::Text::default();
        report(self.file.as_ref().map_or(&none, |file| &file.text), problems)
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
    settings.app.directory = environment.directory(settings.app.directory.take());
    if let Some(clash) = whole(&settings, &given).first() {
        return Err(clash.refusal(file.as_ref()));
    }
    let has_unix = settings.listen.iter().any(|address| matches!(address, ListenAddress::Unix(_)));
    let unix_only = given.iter().find(|one| places::OF_SOCKET.contains(&one.key.name));
    if let Some(one) = unix_only.filter(|_| !has_unix) {
        let name = one.key.name;
        settings.warnings.push(format!("--{name} has no effect: no --listen unix:PATH is given"));
    }
    Ok(Loaded { settings, given, program, file })
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
        let Ok(ListenAddress::Unix(path)) = units::listen(&listen.address) else { continue };
        let mut scratch = Settings::default();
        for (key, value, _) in &listen.own {
            // It was read once already.
            (key.set)(&mut scratch, value).ok();
        }
        settings.unix_listen_of.insert(path, scratch.unix_listen);
    }
}
