//! How a worker is started: its command, its environment and its shim.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::exec::Instructions;

/// Replaced in the command's arguments by the path of the worker's socket.
const SOCKET_WORD: &[u8] = b"{socket}";
/// What the server may have been given by systemd or by a shell, and what is not the workers'.
const NOT_INHERITED: [&str; 7] =
    ["LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "PORT"];

/// What is the same for all workers of an app.
#[derive(Clone, Debug)]
pub struct Launcher {
    /// The binary that has the shim in it: this one.
    pub program: PathBuf,
    /// The command and its arguments as they were given; never empty.
    pub command: Vec<OsString>,
    /// `WORKER_CONCURRENCY`.
    pub concurrency: u32,
    /// RLIMIT_NOFILE as the server found it, soft and hard.
    pub descriptors: Option<(u64, u64)>,
}

/// What is one worker's own.
#[derive(Clone, Copy, Debug)]
pub struct Particulars<'a> {
    /// `WORKER_ID`: its place, from 1.
    pub number: u32,
    /// `GENERATION`.
    pub generation: u32,
    /// Where it is to listen.
    pub socket: &'a Path,
    /// `MAX_REQUESTS`: the number of requests after which it is replaced; 0 for never.
    pub limit: u64,
}

impl Launcher {
    /// Starts a worker in a process group of its own, with pipes for its output. The group's id is the child's.
    ///
    /// # Errors
    /// When no process can be made. That the command cannot be run shows later, by the shim's exit code and message.
    pub fn start(&self, particulars: Particulars<'_>) -> io::Result<Child> {
        let command = self.command.iter().map(|word| with_socket(word, particulars.socket)).collect();
        let instructions =
            Instructions { parent: std::process::id(), descriptors: self.descriptors, socket_on_stdin: false, command };
        let mut shim = Command::new(&self.program);
        shim.arg0("production_server").args(instructions.to_arguments());
        for name in NOT_INHERITED {
            shim.env_remove(name);
        }
        let number = particulars.number.to_string();
        shim.env("SOCKET_PATH", particulars.socket)
            .env("WORKER_ID", &number)
            .env("CLUSTER_WORKER", "true")
            .env("CLUSTER_WORKER_ID", &number)
            .env("GENERATION", particulars.generation.to_string())
            .env("MAX_REQUESTS", particulars.limit.to_string())
            .env("WORKER_CONCURRENCY", self.concurrency.to_string());
        if is_node(&self.command[0]) {
            shim.env("PORT", particulars.socket);
        }
        shim.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).spawn()
    }
}

/// This binary, also after its file was replaced or removed.
pub fn this_program() -> PathBuf {
    if cfg!(target_os = "linux") {
        return PathBuf::from("/proc/self/exe");
    }
    std::env::current_exe().unwrap_or_else(|_| PathBuf::from("production_server"))
}

/// Whether a command can be found and run, before anything is started.
///
/// # Errors
/// One sentence that names the command and what is wrong with it.
pub fn check_command(program: &OsStr) -> Result<(), String> {
    let name = program.to_string_lossy();
    if program.is_empty() {
        return Err("the worker's command is empty".to_owned());
    }
    if name.contains('/') {
        let path = Path::new(program);
        return match path.metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(format!("cannot run `{name}`: there is no such file"))
            }
            Err(error) => Err(format!("cannot run `{name}`: {error}")),
            Ok(metadata) if metadata.is_dir() => Err(format!("cannot run `{name}`: it is a directory")),
            Ok(_) if !may_execute(path) => Err(format!("cannot run `{name}`: it is not executable (chmod +x)")),
            Ok(_) => Ok(()),
        };
    }
    let path = std::env::var_os("PATH").unwrap_or_else(|| OsString::from("/bin:/usr/bin"));
    let mut candidates = std::env::split_paths(&path).map(|directory| directory.join(program));
    if candidates.any(|candidate| candidate.is_file() && may_execute(&candidate)) {
        return Ok(());
    }
    Err(format!("cannot run `{name}`: not found in PATH; install it, or give its path"))
}

fn may_execute(path: &Path) -> bool {
    let Ok(path) = std::ffi::CString::new(path.as_os_str().as_bytes()) else { return false };
    // SAFETY: the path is a string that ends in NUL and outlives the call.
    unsafe { libc::access(path.as_ptr(), libc::X_OK) == 0 }
}

fn is_node(program: &OsStr) -> bool {
    Path::new(program).file_name().is_some_and(|name| name == "node" || name == "nodejs")
}

fn with_socket(word: &OsStr, socket: &Path) -> OsString {
    let bytes = word.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = 0;
    for found in memchr::memmem::find_iter(bytes, SOCKET_WORD) {
        out.extend_from_slice(&bytes[rest..found]);
        out.extend_from_slice(socket.as_os_str().as_bytes());
        rest = found + SOCKET_WORD.len();
    }
    out.extend_from_slice(&bytes[rest..]);
    OsString::from_vec(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_is_put_wherever_the_word_stands() {
        let socket = Path::new("/run/web.sock");
        for (word, expected) in [
            ("{socket}", "/run/web.sock"),
            ("unix:{socket},{socket}!", "unix:/run/web.sock,/run/web.sock!"),
            ("{socke}", "{socke}"),
            ("", ""),
        ] {
            assert_eq!(with_socket(OsStr::new(word), socket), expected);
        }
    }

    #[test]
    fn only_node_is_given_the_socket_as_port() {
        for (program, expected) in [("node", true), ("/usr/bin/nodejs", true), ("nodemon", false), ("deno", false)] {
            assert_eq!(is_node(OsStr::new(program)), expected, "{program}");
        }
    }

    #[test]
    fn a_command_that_cannot_run_is_named() {
        assert_eq!(check_command(OsStr::new("sh")), Ok(()));
        assert_eq!(check_command(OsStr::new("/bin/sh")), Ok(()));
        for (program, expected) in [
            ("no-such-command-here", "not found in PATH"),
            ("/no/such/file", "no such file"),
            ("/etc/passwd", "not executable"),
            ("/etc/", "directory"),
        ] {
            let said = check_command(OsStr::new(program)).unwrap_err();
            assert!(said.contains(expected) && said.contains(program), "{said}");
        }
    }
}
