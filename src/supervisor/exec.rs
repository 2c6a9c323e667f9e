//! `production_server _exec`: the shim between the server and a worker's command.
//!
//! The server starts every worker through this shim, so that it never runs code of its own between fork and exec. The
//! shim asks to die with the server, gives the worker a clean signal state and the descriptor limit that the server was
//! started with, goes to the directory where workers start, puts an inherited listener on descriptor 3, and becomes the command. It owns nothing and leaves
//! nothing behind; the process group was made by the spawn itself.
//!
//! Exit codes are the shell's: 127 when the command is not found, 126 when it is there and cannot be run, 64 for a
//! wrong call.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

/// The word that selects the shim.
pub const WORD: &str = "_exec";
/// Exit code: the command was not found.
pub const NOT_FOUND: u8 = 127;
/// Exit code: the command is there and cannot be run.
pub const CANNOT_RUN: u8 = 126;
/// Exit code: wrong arguments.
const USAGE: u8 = 64;
/// The descriptor of an inherited listener, `SD_LISTEN_FDS_START` of sd_listen_fds(3).
pub const LISTEN_DESCRIPTOR: i32 = 3;

/// What the shim is told by its arguments.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Instructions {
    /// The server's process id: the shim gives up when this is not its parent any more.
    pub parent: u32,
    /// Soft and hard RLIMIT_NOFILE to restore; `None` leaves what is inherited.
    pub descriptors: Option<(u64, u64)>,
    /// Whether standard input is a listening socket that belongs on descriptor 3 (sd_listen_fds(3)).
    pub socket_on_stdin: bool,
    /// Where the command starts; `None`: where the server did.
    pub directory: Option<PathBuf>,
    /// Whether it lives on when the server ends, as a new server does that takes its place.
    pub outlives: bool,
    /// The command and its arguments; never empty.
    pub command: Vec<OsString>,
}

impl Instructions {
    /// The arguments behind the program's name that say this; [`main`] understands them.
    pub fn to_arguments(&self) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = vec![WORD.into(), "--parent".into(), self.parent.to_string().into()];
        if let Some((soft, hard)) = self.descriptors {
            arguments.extend(["--descriptors".into(), format!("{soft}:{hard}").into()]);
        }
        if self.socket_on_stdin {
            arguments.push("--socket-on-stdin".into());
        }
        if self.outlives {
            arguments.push("--outlives".into());
        }
        if let Some(directory) = &self.directory {
            arguments.extend(["--directory".into(), directory.into()]);
        }
        arguments.push("--".into());
        arguments.extend(self.command.iter().cloned());
        arguments
    }

    fn parse(mut arguments: impl Iterator<Item = OsString>) -> Option<Instructions> {
        let mut instructions = Instructions::default();
        while let Some(argument) = arguments.next() {
            match argument.to_str()? {
                "--directory" => instructions.directory = Some(arguments.next()?.into()),
                "--parent" => instructions.parent = arguments.next()?.to_str()?.parse().ok()?,
                "--descriptors" => {
                    let value = arguments.next()?;
                    let (soft, hard) = value.to_str()?.split_once(':')?;
                    instructions.descriptors = Some((soft.parse().ok()?, hard.parse().ok()?));
                }
                "--socket-on-stdin" => instructions.socket_on_stdin = true,
                "--outlives" => instructions.outlives = true,
                "--" => {
                    instructions.command = arguments.collect();
                    return (!instructions.command.is_empty()).then_some(instructions);
                }
                _ => return None,
            }
        }
        None
    }
}

/// Runs the shim with the arguments behind `_exec`. Comes back only when the command could not be run.
pub fn main(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let Some(instructions) = Instructions::parse(arguments) else {
        eprintln!(
            "production_server _exec is called by the server itself; to run a command: production_server -- COMMAND"
        );
        return ExitCode::from(USAGE);
    };
    if !instructions.outlives && !die_with(instructions.parent) {
        // The server went away before the kernel knew of our wish. Nobody waits for this worker.
        return ExitCode::from(CANNOT_RUN);
    }
    reset_signals();
    if let Some((soft, hard)) = instructions.descriptors {
        restore_descriptors(soft, hard);
    }
    if let Some(directory) = &instructions.directory {
        // Here and not in the server: a path on a dead network file system may block for ever.
        if let Err(error) = std::env::set_current_dir(directory) {
            eprintln!("cannot start in the directory {}: {error}", directory.display());
            return ExitCode::from(CANNOT_RUN);
        }
    }
    let (program, arguments) = instructions.command.split_first().expect("the parser refuses an empty command");
    let mut command = Command::new(program);
    command.args(arguments);
    if instructions.socket_on_stdin {
        if let Err(error) = move_listener() {
            eprintln!("cannot pass the listening socket on descriptor {LISTEN_DESCRIPTOR}: {error}");
            return ExitCode::from(CANNOT_RUN);
        }
        command
            .env("LISTEN_FDS", "1")
            .env("LISTEN_FDNAMES", "worker")
            .env("LISTEN_PID", std::process::id().to_string());
    }
    if std::env::var_os("WATCHDOG_USEC").is_some() {
        // The server passes on no watchdog but its own, which is for the process that this one becomes
        // (sd_watchdog_enabled(3)) and not for its children.
        command.env("WATCHDOG_PID", std::process::id().to_string());
    }
    close_others_on_exec(if instructions.socket_on_stdin { LISTEN_DESCRIPTOR as u32 + 1 } else { 3 });
    let error = command.exec();
    let (code, message) = explain(program, &error);
    eprintln!("{message}");
    ExitCode::from(code)
}

/// Exit code and sentence for a command that could not be run.
fn explain(program: &OsStr, error: &io::Error) -> (u8, String) {
    let name = program.to_string_lossy();
    match error.raw_os_error() {
        Some(libc::ENOENT) if name.contains('/') && std::path::Path::new(program).exists() => {
            (CANNOT_RUN, format!("cannot run `{name}`: the interpreter that its first line names does not exist"))
        }
        Some(libc::ENOENT) if name.contains('/') => (NOT_FOUND, format!("cannot run `{name}`: there is no such file")),
        Some(libc::ENOENT) => (NOT_FOUND, format!("cannot run `{name}`: not found in PATH")),
        Some(libc::EACCES) => (CANNOT_RUN, format!("cannot run `{name}`: permission denied (is it executable?)")),
        Some(libc::ENOEXEC) => (
            CANNOT_RUN,
            format!("cannot run `{name}`: not a program for this machine, or a script without a `#!` line"),
        ),
        _ => (CANNOT_RUN, format!("cannot run `{name}`: {error}")),
    }
}

/// Asks the kernel to kill this process when the server's main thread ends, and checks that it is still there. Where
/// the kernel has no such wish (macOS, the BSDs), the guard alone ends the workers.
fn die_with(parent: u32) -> bool {
    // SAFETY: both calls take and return plain numbers.
    unsafe {
        #[cfg(target_os = "linux")]
        if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
            return false;
        }
        libc::getppid() as u32 == parent
    }
}

/// All signals to their defaults, none blocked: the state of the server (or of a `nohup` before it) is not the worker's.
fn reset_signals() {
    // SAFETY: the set is initialised by sigemptyset before it is read; SIG_DFL is a valid disposition for every signal,
    // and the two that cannot be changed only fail.
    unsafe {
        for signal in 1..32 {
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut none = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigemptyset(none.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), std::ptr::null_mut());
    }
}

fn restore_descriptors(soft: u64, hard: u64) {
    let limit = libc::rlimit { rlim_cur: soft as libc::rlim_t, rlim_max: hard as libc::rlim_t };
    // SAFETY: the structure is initialised and outlives the call. A failure leaves the higher limit, which harms nobody.
    unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) };
}

/// What the server itself was started with beyond the standard three is not the worker's. Where close_range(2) is missing
/// (before Linux 5.11, and elsewhere) it stays open, as it would under a shell.
fn close_others_on_exec(first: u32) {
    #[cfg(target_os = "linux")]
    // SAFETY: close_range takes plain numbers, and with this flag closes nothing before the exec.
    unsafe {
        libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC)
    };
    #[cfg(not(target_os = "linux"))]
    let _ = first;
}

/// Moves the listener from standard input to descriptor 3, open across exec, and puts /dev/null in its place. Descriptor
/// 3 may hold something of ours that is closed on exec anyway.
fn move_listener() -> io::Result<()> {
    let null = std::fs::File::open("/dev/null")?;
    // SAFETY: dup2 takes plain numbers; the descriptors it replaces are not used by this process any more: it only
    // execs, or leaves by returning an exit code.
    let moved = unsafe {
        let from = null.as_raw_fd();
        let spare = if from == LISTEN_DESCRIPTOR { libc::fcntl(from, libc::F_DUPFD_CLOEXEC, 4) } else { from };
        spare >= 0 && libc::dup2(0, LISTEN_DESCRIPTOR) == LISTEN_DESCRIPTOR && libc::dup2(spare, 0) == 0
    };
    let error = io::Error::last_os_error();
    // Descriptor 3 may now be the listener and no more the file that was opened here; it must not be closed.
    std::mem::forget(null);
    if moved { Ok(()) } else { Err(error) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_come_back_as_they_were_said() {
        let said = Instructions {
            parent: 42,
            descriptors: Some((1024, u64::MAX)),
            socket_on_stdin: true,
            directory: Some("/srv/app/current".into()),
            outlives: true,
            command: ["sh", "-c", "--", "--parent"].map(OsString::from).to_vec(),
        };
        let arguments = said.to_arguments();
        assert_eq!(arguments[0], WORD);
        assert_eq!(Instructions::parse(arguments.into_iter().skip(1)), Some(said));
    }

    #[test]
    fn a_wrong_call_is_refused() {
        for arguments in [&["--parent", "x", "--", "a"][..], &["--parent", "1"], &["--parent", "1", "--"], &["a"], &[]]
        {
            assert_eq!(Instructions::parse(arguments.iter().map(OsString::from)), None, "{arguments:?}");
        }
    }
}
