//! The words of `production_server conformance`.

use std::ffi::OsString;
use std::time::Duration;

use clap::builder::OsStringValueParser;
use clap::{Arg, ArgAction, ArgMatches};

use super::WorkerSocket;
use super::units::{choice, duration};

const TIMEOUT_RANGE: std::ops::RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(3600);

const SOCKET_HELP: &str =
    "What it listens on: unix, inherit (descriptor 3), tcp, or auto: a socket or a port, as it likes [default: unix]";

/// What `conformance` is to look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conformance {
    /// How long the worker may take to get ready.
    pub timeout: Duration,
    /// What it listens on.
    pub socket: WorkerSocket,
    /// A path whose answer takes a while, for the check of a stop with a request in flight.
    pub slow_path: Option<String>,
    /// The command; empty for the built-in worker.
    pub command: Vec<OsString>,
}

/// The subcommand as clap knows it.
pub(super) fn subcommand() -> clap::Command {
    let text = |name: &'static str, value: &'static str| {
        Arg::new(name).long(name).value_name(value).action(ArgAction::Append).value_parser(OsStringValueParser::new())
    };
    let command =
        Arg::new("command").value_name("COMMAND").num_args(1..).last(true).value_parser(OsStringValueParser::new());
    clap::Command::new("conformance")
        .about("Run a command as a worker through the worker contract and print what was seen")
        .override_usage("production_server conformance [FLAGS] [-- COMMAND…]")
        .arg(text("timeout", "DURATION").help("How long the worker may take to get ready [default: 15s]"))
        .arg(text("socket", "KIND").help(SOCKET_HELP))
        .arg(text("slow-path", "PATH").help("A path that takes half a second or more, to see a stop in flight"))
        .arg(command.help("What the worker runs; {socket} stands for its socket. Without it: the built-in worker"))
        .after_help("Exit codes: 0 no check failed, 1 one did, 64 wrong usage, 73 or 77 no place for the socket")
}

/// Reads the words behind the subcommand.
///
/// # Errors
/// The flag and what is wrong with its value, in one line.
pub(super) fn read(matches: &ArgMatches) -> Result<Conformance, String> {
    let kinds = [
        ("unix", WorkerSocket::Unix),
        ("auto", WorkerSocket::Auto),
        ("inherit", WorkerSocket::Inherit),
        ("tcp", WorkerSocket::Tcp),
    ];
    let mut wanted = Conformance {
        timeout: Duration::from_secs(15),
        socket: WorkerSocket::Unix,
        slow_path: None,
        command: matches.get_many("command").map_or_else(Vec::new, |words| words.cloned().collect()),
    };
    if let Some(text) = last(matches, "timeout", "15s")? {
        wanted.timeout =
            duration(&text, TIMEOUT_RANGE).map_err(|expected| wrong("timeout", &text, &expected, "15s"))?;
    }
    if let Some(text) = last(matches, "socket", "unix")? {
        wanted.socket = choice(&text, &kinds).map_err(|expected| wrong("socket", &text, &expected, "unix"))?;
    }
    if let Some(text) = last(matches, "slow-path", "/sleep?ms=500")? {
        let is_path = text.starts_with('/') && text.bytes().all(|byte| byte.is_ascii_graphic());
        if !is_path {
            return Err(wrong("slow-path", &text, "expected a path in ASCII, without blanks", "/sleep?ms=500"));
        }
        wanted.slow_path = Some(text);
    }
    if wanted.command.first().is_some_and(|program| program.is_empty()) {
        return Err("error: the command behind -- is empty, as in conformance -- node server.js".to_owned());
    }
    Ok(wanted)
}

/// The last value of a flag, as for the server's own flags.
fn last(matches: &ArgMatches, name: &str, example: &str) -> Result<Option<String>, String> {
    let Some(value) = matches.get_many::<OsString>(name).and_then(|mut values| values.next_back()) else {
        return Ok(None);
    };
    let text = value.to_str().ok_or_else(|| wrong(name, &value.to_string_lossy(), "expected UTF-8", example))?;
    Ok(Some(text.to_owned()))
}

fn wrong(name: &str, value: &str, expected: &str, example: &str) -> String {
    format!("error: --{name} {value:?}: {expected}, as in --{name} {example}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(words: &[&str]) -> Result<Conformance, String> {
        read(&subcommand().try_get_matches_from(words).map_err(|error| error.to_string())?)
    }

    #[test]
    fn everything_has_its_place() {
        let plain = of(&["conformance"]).unwrap();
        assert_eq!(
            (plain.timeout, plain.socket, plain.command.len()),
            (Duration::from_secs(15), WorkerSocket::Unix, 0)
        );
        let full = "conformance --timeout 2s --timeout 300ms --socket tcp --slow-path /slow?ms=500 -- node --socket x";
        let full = of(&full.split(' ').collect::<Vec<_>>()).unwrap();
        let expected = Conformance {
            timeout: Duration::from_millis(300),
            socket: WorkerSocket::Tcp,
            slow_path: Some("/slow?ms=500".to_owned()),
            command: ["node", "--socket", "x"].map(OsString::from).to_vec(),
        };
        assert_eq!(full, expected);
    }

    #[test]
    fn mistakes_name_the_flag_the_value_and_an_example() {
        for (words, said) in [
            ("conformance --timeout 5", "error: --timeout \"5\": expected a duration"),
            ("conformance --socket udp", "error: --socket \"udp\": expected"),
            ("conformance --slow-path sleep", "error: --slow-path \"sleep\": expected a path"),
        ] {
            let line = of(&words.split(' ').collect::<Vec<_>>()).unwrap_err();
            assert!(line.starts_with(said) && line.contains(", as in --"), "{line}");
        }
    }
}
