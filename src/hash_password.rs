//! `production_server hash-password`: a line for the file of users, from a password that is typed or comes by standard input. The password is
//! never an argument, which every process of the machine may read.

use std::io::{BufRead, IsTerminal, Read, Write};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;

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

/// What ends or stops the process while it asks.
const SIGNALS: [i32; 5] = [SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGTSTP];

/// How the terminal was; `None`: it is so.
type Before = Arc<Mutex<Option<Termios>>>;

/// The terminal does not show what is typed, as long as this lives, and the process neither ends nor stands still by a signal.
struct Silence(Before);

impl Silence {
    fn new() -> Silence {
        let before = Arc::new(Mutex::new(tcgetattr(std::io::stdin()).ok()));
        // Before it is silent: no signal may come in between.
        if let Ok(signals) = Signals::new(SIGNALS) {
            let before = before.clone();
            std::thread::spawn(move || heed(signals, &before));
        }
        silence(&lock(&before));
        Silence(before)
    }
}

impl Drop for Silence {
    fn drop(&mut self) {
        show(&lock(&self.0).take());
    }
}

/// Does what signals say, but with a terminal that shows what is typed; and goes on as it was where the process is told to go on.
fn heed(mut signals: Signals, before: &Before) {
    for signal in signals.forever() {
        let before = lock(before);
        show(&before);
        // Nothing is to be done where it cannot be done.
        let _ = emulate_default_handler(signal);
        silence(&before);
    }
}

fn lock(before: &Before) -> MutexGuard<'_, Option<Termios>> {
    before.lock().unwrap_or_else(PoisonError::into_inner)
}

fn silence(before: &Option<Termios>) {
    if let Some(mut silent) = before.clone() {
        silent.local_flags.remove(LocalFlags::ECHO);
        // A terminal that shows it is better than no password.
        let _ = tcsetattr(std::io::stdin(), SetArg::TCSAFLUSH, &silent);
    }
}

fn show(before: &Option<Termios>) {
    if let Some(before) = before {
        let _ = tcsetattr(std::io::stdin(), SetArg::TCSAFLUSH, before);
    }
}
