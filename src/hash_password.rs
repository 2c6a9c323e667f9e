//! `production_server hash-password`: a line for the file of users, from a password that is typed or comes by standard input. The password is
//! never an argument, which every process of the machine may read.

use std::io::{BufRead, IsTerminal, Read, Write};
use std::process::ExitCode;

use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};

use crate::access::{Scheme, hash};
use crate::config::HashPassword;

/// The most that is read of a password.
const MOST: u64 = 4096;
/// Exit codes: of a password that is none, and of input that cannot be read (sysexits(3): EX_DATAERR, EX_NOINPUT).
const UNFIT: u8 = 65;
const UNREADABLE: u8 = 66;

/// Writes the line to standard output.
pub fn main(wanted: &HashPassword) -> ExitCode {
    let password = match read() {
        Ok(password) => password,
        Err(Wrong(code, what)) => return fail(code, &what),
    };
    let scheme = if wanted.bcrypt { Scheme::Bcrypt } else { Scheme::Argon2id };
    match hash(password.as_bytes(), scheme) {
        Ok(hash) => {
            let user = wanted.user.as_ref().map_or_else(String::new, |user| format!("{user}:"));
            // A reader that has gone is no error.
            let _ = writeln!(std::io::stdout(), "{user}{hash}");
            ExitCode::SUCCESS
        }
        Err(what) => fail(UNFIT, &what),
    }
}

fn fail(code: u8, what: &str) -> ExitCode {
    // There is no other place to say it.
    let _ = writeln!(std::io::stderr(), "production_server hash-password: {what}");
    ExitCode::from(code)
}

/// What is wrong, and the exit code.
struct Wrong(u8, String);

fn read() -> Result<String, Wrong> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        return line();
    }
    let silence = Silence::new();
    let password = asked("Password: ")?;
    let again = asked("The same again: ")?;
    drop(silence);
    if password == again { Ok(password) } else { Err(Wrong(UNFIT, "the two are not the same".to_owned())) }
}

fn asked(prompt: &str) -> Result<String, Wrong> {
    // Where it cannot be asked, it can be typed all the same.
    let _ = write!(std::io::stderr(), "{prompt}");
    let password = line();
    let _ = writeln!(std::io::stderr());
    password
}

/// The first line of standard input, without its end.
fn line() -> Result<String, Wrong> {
    let mut line = Vec::new();
    let mut input = std::io::stdin().lock().take(MOST);
    input.read_until(b'\n', &mut line).map_err(|error| Wrong(UNREADABLE, format!("standard input: {error}")))?;
    let line = String::from_utf8(line).map_err(|_| Wrong(UNFIT, "the password is not UTF-8".to_owned()))?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

/// The terminal does not show what is typed, as long as this lives.
struct Silence(Option<Termios>);

impl Silence {
    fn new() -> Silence {
        let stdin = std::io::stdin();
        let before = tcgetattr(&stdin).ok();
        if let Some(mut silent) = before.clone() {
            silent.local_flags.remove(LocalFlags::ECHO);
            // A terminal that shows it is better than no password.
            let _ = tcsetattr(&stdin, SetArg::TCSAFLUSH, &silent);
        }
        Silence(before)
    }
}

impl Drop for Silence {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = tcsetattr(std::io::stdin(), SetArg::TCSAFLUSH, before);
        }
    }
}
