//! What shells and man(1) know of the command line, made of the same definitions as the help: `completions SHELL` and `man [COMMAND]`.

use clap::Arg;
use clap::builder::OsStringValueParser;
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};

use super::arguments::{Refusal, command, quoted};

/// The program's name, in commands and file names.
const NAME: &str = "production_server";
const SHELLS: [(&str, Shell); 5] = [
    ("bash", Shell::Bash),
    ("elvish", Shell::Elvish),
    ("fish", Shell::Fish),
    ("powershell", Shell::PowerShell),
    ("zsh", Shell::Zsh),
];

/// The two words.
pub(super) fn with_words(command: clap::Command) -> clap::Command {
    let word = |name: &'static str, value: &'static str| {
        Arg::new(name).value_name(value).value_parser(OsStringValueParser::new())
    };
    let shell = word("shell", "SHELL").required(true).help("bash, elvish, fish, powershell or zsh");
    let page = word("page", "COMMAND").help("The page of one command [default: of the whole]");
    command
        .subcommand(
            clap::Command::new("completions").about("Print what a shell completes this command with").arg(shell),
        )
        .subcommand(clap::Command::new("man").about("Print the manual page, for man -l -").arg(page))
}

/// One of the words: what it prints.
pub(super) fn read(name: &str, matches: &clap::ArgMatches) -> Result<Vec<u8>, Refusal> {
    let word = |name| matches.get_one::<std::ffi::OsString>(name);
    match (name, word(if name == "man" { "page" } else { "shell" })) {
        ("man", None) => Ok(manual(&command())),
        ("man", Some(page)) => {
            let whole = command();
            let found = whole.get_subcommands().find(|command| page == command.get_name());
            let found = found.ok_or_else(|| {
                Refusal::usage(format!("error: man {}: there is no such command: see {NAME} --help", quoted(page)))
            })?;
            // Leaked once, by a process that prints and ends: clap takes names that live on.
            let full = format!("{NAME}-{}", found.get_name()).leak();
            Ok(manual(&found.clone().name(&*full).version(env!("CARGO_PKG_VERSION"))))
        }
        (_, shell) => {
            let shell = shell.map(|shell| shell.as_os_str()).unwrap_or_default();
            let found = SHELLS.iter().find(|(name, _)| shell == *name).ok_or_else(|| {
                let expected = "expected bash, elvish, fish, powershell or zsh";
                Refusal::usage(format!("error: completions {}: {expected}", quoted(shell)))
            })?;
            let mut out = Vec::new();
            clap_complete::generate(found.1, &mut command(), NAME, &mut out);
            Ok(out)
        }
    }
}

/// A manual page. What stands below the help are tables and examples, whose lines stay as they are.
fn manual(command: &clap::Command) -> Vec<u8> {
    let below = command.get_after_long_help().map(ToString::to_string);
    let page = Man::new(command.clone().after_help("").after_long_help("")).manual("User Commands");
    let mut out = Vec::new();
    // Writing to a Vec cannot fail.
    let _ = page.render(&mut out);
    if let Some(below) = below {
        let mut roff = Roff::new();
        roff.control("SH", ["EXAMPLES, SIGNALS AND EXIT CODES"]).control("nf", []);
        roff.text([roman(below)]).control("fi", []);
        let _ = roff.to_writer(&mut out);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::environment::Environment;
    use super::super::{Invocation, keys, read};

    fn printed(words: &[&str]) -> Result<String, String> {
        let words = std::iter::once("production_server").chain(words.iter().copied()).map(Into::into);
        match read(words, &Environment::default()) {
            Ok(Invocation::Text(text)) => Ok(String::from_utf8(text).unwrap()),
            Ok(other) => panic!("{other:?}"),
            Err(refusal) => Err(format!("{} {}", refusal.exit_code, refusal.line)),
        }
    }

    /// The long names of a command's flags.
    fn flags(command: &clap::Command) -> impl Iterator<Item = &str> {
        command.get_arguments().filter(|flag| !flag.is_hide_set()).filter_map(clap::Arg::get_long)
    }

    #[test]
    fn every_shell_completes_every_flag_and_word() {
        for (shell, _) in super::SHELLS {
            let text = printed(&["completions", shell]).unwrap();
            for key in keys::all() {
                assert!(text.contains(key.name), "--{} is not completed in {shell}", key.name);
            }
            for word in super::command().get_subcommands() {
                assert!(text.contains(word.get_name()), "{} is not completed in {shell}", word.get_name());
                for flag in flags(word) {
                    assert!(text.contains(flag), "--{flag} of {} is not completed in {shell}", word.get_name());
                }
            }
        }
        assert!(
            printed(&["completions", "sh"]).unwrap_err().starts_with("64 error: completions \"sh\": expected bash")
        );
        assert!(printed(&["completions"]).unwrap_err().starts_with("64 "));
    }

    #[test]
    fn the_manual_has_every_flag_and_a_page_for_each_word() {
        let page = printed(&["man"]).unwrap();
        assert!(page.starts_with(".ie") && page.contains(".TH production_server 1"), "{}", &page[..200]);
        for key in keys::all() {
            let flag = format!("\\-\\-{}", key.name.replace('-', "\\-"));
            assert!(page.contains(&flag), "{flag} is not in the manual");
        }
        assert!(page.contains(".nf\n") && page.contains("TERM, INT"));
        for command in super::command().get_subcommands() {
            let page = printed(&["man", command.get_name()]).unwrap();
            assert!(page.contains(&format!(".TH production_server-{} 1", command.get_name())), "{}", &page[..200]);
            for flag in flags(command) {
                let flag = format!("\\-\\-{}", flag.replace('-', "\\-"));
                assert!(page.contains(&flag), "{flag} is not in the page of {}", command.get_name());
            }
        }
        assert!(printed(&["man", "nothing"]).unwrap_err().starts_with("64 error: man \"nothing\": there is no such"));
    }
}
