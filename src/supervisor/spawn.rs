//! How a worker is started: its command, its environment and its shim.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::endpoint::{Endpoint, Ports};
use super::exec::Instructions;
use super::{advice, program};
use crate::config::{self, App, ReadyBy, WorkerSocket};

/// Replaced in the command's arguments by the path of the worker's socket.
const SOCKET_WORD: &str = "{socket}";
/// Replaced in the command's arguments by the worker's TCP port.
const PORT_WORD: &str = "{port}";
/// What is meant for the server and does not reach the workers, whoever set it: systemd (systemd.exec(5)), a shell, or a server above.
/// Credentials ($CREDENTIALS_DIRECTORY) are the app's and do.
const NOT_INHERITED: [&str; 19] = [
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_PIDFDID",
    "LISTEN_FDNAMES",
    "FDSTORE",
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "SYSTEMD_EXEC_PID",
    "JOURNAL_STREAM",
    "RUNTIME_DIRECTORY",
    "STATE_DIRECTORY",
    "CACHE_DIRECTORY",
    "LOGS_DIRECTORY",
    "CONFIGURATION_DIRECTORY",
    "PORT",
    "SOCKET_PATH",
    "CONTROL_SOCKET",
    "WEB_CONCURRENCY",
];
/// What the names of the server's own settings begin with.
const PREFIXES_NOT_INHERITED: [&str; 2] = ["PRODUCTION_SERVER_", "RIP_"];

/// Whether a variable of the server's environment is kept from the workers.
fn is_for_the_server(name: &OsStr) -> bool {
    NOT_INHERITED.iter().any(|own| name == *own)
        || PREFIXES_NOT_INHERITED.iter().any(|prefix| name.as_bytes().starts_with(prefix.as_bytes()))
}

/// What is the same for all workers of an app.
#[derive(Clone, Debug)]
pub struct Launcher {
    /// The binary that has the shim in it: this one.
    program: PathBuf,
    /// The command and its arguments as they were given; never empty.
    command: Vec<OsString>,
    socket: WorkerSocket,
    /// Where workers start, resolved anew at each start; `None`: where the server did.
    directory: Option<PathBuf>,
    /// Variables of the user that workers are; the app's own win.
    user: Vec<(&'static str, OsString)>,
    /// The app's own variables; those of the contract win.
    environment: BTreeMap<String, String>,
    /// `WORKER_CONCURRENCY`.
    concurrency: u32,
    /// `WATCHDOG_USEC`.
    watchdog: Option<Duration>,
    /// Whether readiness waits for the worker's word.
    notify: bool,
    /// `CONTROL_SOCKET`.
    control: Option<PathBuf>,
    /// RLIMIT_NOFILE as the server found it, soft and hard.
    descriptors: Option<(u64, u64)>,
    ports: Ports,
}

/// What is one worker's own.
#[derive(Clone, Copy, Debug)]
pub struct Particulars<'a> {
    /// `WORKER_ID`: its place, from 1.
    pub number: u32,
    /// `GENERATION`.
    pub generation: u32,
    /// `MAX_REQUESTS`: the number of requests after which it is replaced; 0 for never.
    pub limit: u64,
    /// `NOTIFY_SOCKET`: where it may speak ([`Launcher::listens_to_workers`]).
    pub notify: Option<&'a Path>,
}

impl Launcher {
    /// What starts the workers of an app, its command checked; `None` when it has none. `program` is this binary
    /// ([`this_program`]), `control` the path of the control socket, `descriptors` the limit that workers get (soft, hard).
    ///
    /// # Errors
    /// One sentence about a command that cannot be run or that contradicts the kind of socket.
    pub fn new(
        app: &App,
        program: &Path,
        control: Option<PathBuf>,
        descriptors: Option<(u64, u64)>,
    ) -> Result<Option<Launcher>, String> {
        let command = match &app.program.command {
            config::Command::None => return Ok(None),
            config::Command::Argv(words) => words.clone(),
            config::Command::BuiltIn => built_in(app, program)?,
        };
        if let Some(directory) = app.program.directory.as_ref().filter(|directory| !directory.is_dir()) {
            return Err(format!("cannot start workers in {}: there is no such directory", directory.display()));
        }
        program::check(&command, app.program.directory.as_deref())?;
        let socket = socket_kind(&command, app)?;
        if socket == WorkerSocket::Tcp && app.life.ready.by == ReadyBy::Join {
            return Err(
                "a worker on a TCP port has no socket to join with: expected another --ready, or no {port} and no \
                        --socket tcp"
                    .to_owned(),
            );
        }
        Ok(Some(Launcher {
            program: program.to_path_buf(),
            socket,
            command,
            directory: app.program.directory.clone(),
            user: Vec::new(),
            environment: app.program.environment.clone(),
            concurrency: app.sharing.concurrency.max(1),
            watchdog: app.life.watchdog,
            notify: app.life.ready.by == ReadyBy::Notify,
            control,
            descriptors,
            ports: Ports::default(),
        }))
    }

    /// The same for workers that are that user, by these variables.
    #[must_use]
    pub fn of_user(self, user: Vec<(&'static str, OsString)>) -> Launcher {
        Launcher { user, ..self }
    }

    /// The place where the next worker is to listen. `path` is for a Unix socket, and is not used for a TCP port.
    ///
    /// # Errors
    /// As [`Endpoint::open`].
    pub fn endpoint(&self, path: PathBuf) -> io::Result<Endpoint> {
        Endpoint::open(self.socket, path, &self.ports)
    }

    /// Whether a worker needs a socket on which it speaks ([`super::notify::NotifySocket`]): its readiness or its watchdog
    /// depends on it.
    pub fn listens_to_workers(&self) -> bool {
        self.notify || self.watchdog.is_some()
    }

    /// Whether `PORT` is the path of the worker's socket: in node, `listen(process.env.PORT)` takes either.
    pub fn has_path_as_port(&self) -> bool {
        self.socket == WorkerSocket::Unix && is_node(&self.command[0])
    }

    /// Requests that a worker may have at once, as it is told.
    pub fn concurrency(&self) -> u32 {
        self.concurrency
    }

    /// A line about a command that starts a pool of its own ([`advice`]).
    pub fn advice(&self) -> Option<String> {
        advice::about(&self.command, self.concurrency)
    }

    /// Starts a worker in a process group of its own, with pipes for its output. The group's id is the child's. A socket
    /// that the worker inherits is the worker's alone afterwards, whatever comes back.
    ///
    /// # Errors
    /// When no process can be made. That the command cannot be run shows later, by the shim's exit code and message.
    pub fn start(&self, particulars: Particulars<'_>, endpoint: &mut Endpoint) -> io::Result<Child> {
        let listener = endpoint.take_listener()?;
        let instructions = Instructions {
            parent: std::process::id(),
            descriptors: self.descriptors,
            socket_on_stdin: listener.is_some(),
            directory: self.directory.clone(),
            outlives: false,
            command: self.command.iter().map(|word| filled_in(word, endpoint)).collect(),
        };
        let mut shim = Command::new(&self.program);
        shim.arg0("production_server").args(instructions.to_arguments());
        self.set_environment(&mut shim, particulars, endpoint);
        // The command's end, at the end of this function, closes our copy of the listener.
        let stdin = listener.map_or_else(Stdio::null, Stdio::from);
        shim.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).spawn()
    }

    /// The worker contract's variables.
    fn set_environment(&self, shim: &mut Command, particulars: Particulars<'_>, endpoint: &Endpoint) {
        for name in std::env::vars_os().map(|(name, _)| name).filter(|name| is_for_the_server(name)) {
            shim.env_remove(name);
        }
        shim.envs(self.user.iter().map(|(name, value)| (name, value)));
        shim.envs(&self.environment);
        let number = particulars.number.to_string();
        shim.env("WORKER_ID", &number)
            .env("CLUSTER_WORKER", "true")
            .env("CLUSTER_WORKER_ID", &number)
            .env("GENERATION", particulars.generation.to_string())
            .env("MAX_REQUESTS", particulars.limit.to_string())
            .env("WORKER_CONCURRENCY", self.concurrency.to_string())
            // For gunicorn, uvicorn and Puma: a worker is one process, and the server has several.
            .env("WEB_CONCURRENCY", "1");
        if let Some(path) = &self.directory {
            shim.env("PWD", path);
        }
        if let Some(path) = endpoint.path() {
            shim.env("SOCKET_PATH", path);
        }
        if let Some(port) = endpoint.port() {
            shim.env("PORT", port.to_string());
        } else if let Some(path) = endpoint.path().filter(|_| self.has_path_as_port()) {
            shim.env("PORT", path);
        }
        if let Some(path) = &self.control {
            shim.env("CONTROL_SOCKET", path);
        }
        if let Some(path) = particulars.notify {
            shim.env("NOTIFY_SOCKET", path);
        }
        if let Some(period) = self.watchdog {
            // The shim adds WATCHDOG_PID, which it alone knows.
            shim.env("WATCHDOG_USEC", period.as_micros().to_string());
        }
    }
}

/// The command of the worker inside this binary.
fn built_in(app: &App, program: &Path) -> Result<Vec<OsString>, String> {
    if app.program.socket == WorkerSocket::Tcp {
        return Err(
            "the built-in worker serves on Unix sockets only: --socket tcp needs a command behind --".to_owned()
        );
    }
    let mut command = vec![program.as_os_str().to_owned(), super::BUILT_IN.into()];
    if let Some(module) = &app.program.module {
        command.extend(["--module".into(), module.as_os_str().to_owned()]);
    }
    Ok(command)
}

/// What a worker listens on, as its command and the configuration say together: `{port}` asks for TCP by itself, and what is known to
/// take a path, be it as its `PORT`, is given no port.
fn socket_kind(command: &[OsString], app: &App) -> Result<WorkerSocket, String> {
    let takes_path =
        app.program.command == config::Command::BuiltIn || is_node(&command[0]) || app.life.ready.by == ReadyBy::Join;
    let configured = match app.program.socket {
        WorkerSocket::Auto if takes_path => WorkerSocket::Unix,
        configured => configured,
    };
    let has = |name: &str| command.iter().any(|word| memchr::memmem::find(word.as_bytes(), name.as_bytes()).is_some());
    match (has(SOCKET_WORD), has(PORT_WORD), configured) {
        (true, true, _) => Err("the worker's command has both {socket} and {port}: expected one of them".to_owned()),
        (true, _, WorkerSocket::Tcp) => {
            Err("the worker's command has {socket}, and --socket tcp gives it a port: expected {port}".to_owned())
        }
        (_, true, WorkerSocket::Inherit) => {
            Err("the worker's command has {port}, and --socket inherit gives it descriptor 3: expected one of them"
                .to_owned())
        }
        (_, true, _) => Ok(WorkerSocket::Tcp),
        (true, _, WorkerSocket::Auto) => Ok(WorkerSocket::Unix),
        _ => Ok(configured),
    }
}

/// This binary, also after its file was replaced or removed.
pub fn this_program() -> PathBuf {
    if cfg!(target_os = "linux") {
        return PathBuf::from("/proc/self/exe");
    }
    std::env::current_exe().unwrap_or_else(|_| PathBuf::from("production_server"))
}

fn is_node(program: &OsStr) -> bool {
    Path::new(program).file_name().is_some_and(|name| name == "node" || name == "nodejs")
}

/// A word of the command with the worker's socket or port put in.
fn filled_in(word: &OsStr, endpoint: &Endpoint) -> OsString {
    match (endpoint.path(), endpoint.port()) {
        (Some(path), _) => replaced(word, SOCKET_WORD, path.as_os_str().as_bytes()),
        (None, Some(port)) => replaced(word, PORT_WORD, port.to_string().as_bytes()),
        (None, None) => word.to_owned(),
    }
}

fn replaced(word: &OsStr, name: &str, value: &[u8]) -> OsString {
    let bytes = word.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = 0;
    for found in memchr::memmem::find_iter(bytes, name) {
        out.extend_from_slice(&bytes[rest..found]);
        out.extend_from_slice(value);
        rest = found + name.len();
    }
    out.extend_from_slice(&bytes[rest..]);
    OsString::from_vec(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn the_socket_is_put_wherever_the_word_stands() {
        for (word, expected) in [
            ("{socket}", "/run/web.sock"),
            ("unix:{socket},{socket}!", "unix:/run/web.sock,/run/web.sock!"),
            ("{socke}", "{socke}"),
            ("", ""),
        ] {
            assert_eq!(replaced(OsStr::new(word), SOCKET_WORD, b"/run/web.sock"), expected);
        }
    }

    /// A launcher of `sh -c SCRIPT` that is changed before it is made.
    fn launcher(script: &str, change: impl FnOnce(&mut App)) -> Result<Launcher, String> {
        let words = ["sh", "-c", script].map(OsString::from).to_vec();
        let mut app = App::default();
        app.program.command = config::Command::Argv(words);
        change(&mut app);
        Launcher::new(&app, Path::new("/bin/true"), None, None).map(|launcher| launcher.expect("there is a command"))
    }

    #[test]
    fn the_command_and_the_kind_of_socket_agree() {
        let kind =
            |script: &str, socket| launcher(script, |app| app.program.socket = socket).map(|launcher| launcher.socket);
        use WorkerSocket::{Auto, Inherit, Tcp, Unix};
        for (script, configured, expected) in [
            ("x", Auto, Auto),
            ("x {socket}", Auto, Unix),
            ("x :{port}", Auto, Tcp),
            ("x", Unix, Unix),
            ("x {socket}", Unix, Unix),
            ("x {socket}", Inherit, Inherit),
            ("x :{port}", Unix, Tcp),
            ("x :{port}", Tcp, Tcp),
            ("x", Tcp, Tcp),
        ] {
            assert_eq!(kind(script, configured), Ok(expected), "{script}");
        }
        for (script, configured) in [("{port} {socket}", Unix), ("{socket}", Tcp), ("{port}", Inherit)] {
            let refused = kind(script, configured).unwrap_err();
            assert!(refused.contains("expected"), "{refused}");
        }
    }

    #[test]
    fn a_worker_on_a_port_cannot_be_ready_by_joining() {
        let made = |script| launcher(script, |app| app.life.ready.by = ReadyBy::Join);
        assert!(made("x {port}").unwrap_err().contains("--ready"));
        assert!(made("x").is_ok());
    }

    #[test]
    fn the_built_in_worker_gets_its_module() {
        let mut app = App::default();
        app.program.module = Some("a.so".into());
        let made = |app: &App| Launcher::new(app, Path::new("/bin/true"), None, None);
        let launcher = made(&app).unwrap().unwrap();
        assert_eq!(launcher.command, ["/bin/true", "worker", "--module", "a.so"]);
        assert_eq!(launcher.socket, WorkerSocket::Unix, "it is known to take a path");
        app.program.socket = WorkerSocket::Tcp;
        assert!(made(&app).unwrap_err().contains("--socket tcp"));
        app.program.command = config::Command::None;
        assert!(made(&app).unwrap().is_none());
    }

    /// The variables that a worker would be given, those that are taken away as `None`.
    fn environment(launcher: &Launcher, endpoint: &Endpoint, notify: Option<&Path>) -> HashMap<String, Option<String>> {
        let mut command = Command::new("x");
        let particulars = Particulars { number: 3, generation: 7, limit: 500, notify };
        launcher.set_environment(&mut command, particulars, endpoint);
        let text = |value: &OsStr| value.to_str().unwrap().to_owned();
        command.get_envs().map(|(name, value)| (text(name), value.map(text))).collect()
    }

    #[test]
    fn the_environment_is_that_of_the_contract() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("web.sock");
        let given = path.to_str().unwrap();
        let of = |launcher: &Launcher, notify| {
            environment(launcher, &launcher.endpoint(path.clone()).expect("an endpoint"), notify)
        };
        let plain = of(&launcher("x", |app| app.program.socket = WorkerSocket::Unix).unwrap(), None);
        for (name, expected) in [
            ("SOCKET_PATH", Some(given)),
            ("WORKER_ID", Some("3")),
            ("CLUSTER_WORKER", Some("true")),
            ("CLUSTER_WORKER_ID", Some("3")),
            ("GENERATION", Some("7")),
            ("MAX_REQUESTS", Some("500")),
            ("WORKER_CONCURRENCY", Some("1")),
            ("WEB_CONCURRENCY", Some("1")),
            ("PORT", None),
            ("CONTROL_SOCKET", None),
            ("NOTIFY_SOCKET", None),
            ("WATCHDOG_USEC", None),
        ] {
            assert_eq!(plain.get(name).cloned().flatten().as_deref(), expected, "{name}");
        }
        let either = of(&launcher("x", |_| {}).unwrap(), None);
        assert!(either["PORT"].as_ref().unwrap().parse::<u16>().unwrap() > 0);
        assert_eq!(either["SOCKET_PATH"].as_deref(), Some(given));
        let mut as_node = launcher("x", |app| app.program.socket = WorkerSocket::Unix).unwrap();
        as_node.command = vec!["/usr/bin/node".into(), "a.js".into()];
        assert_eq!(of(&as_node, None)["PORT"].as_deref(), Some(given));
        as_node.socket = WorkerSocket::Inherit;
        assert_eq!(of(&as_node, None).get("PORT").cloned().flatten(), None, "there is nothing left to open");
        std::fs::remove_file(&path).unwrap();
        as_node.socket = WorkerSocket::Tcp;
        let tcp = of(&as_node, None);
        assert!(tcp["PORT"].as_ref().unwrap().parse::<u16>().unwrap() > 0);
        assert_eq!(tcp.get("SOCKET_PATH").cloned().flatten(), None);
        let own = |app: &mut App| _ = app.program.environment.insert("HOME".to_owned(), "/srv/web".to_owned());
        let of_user =
            launcher("x", own).unwrap().of_user(vec![("HOME", "/nonexistent".into()), ("USER", "web".into())]);
        let of_user = of(&of_user, None);
        assert_eq!((of_user["HOME"].as_deref(), of_user["USER"].as_deref()), (Some("/srv/web"), Some("web")));
        let mut speaking = launcher("x", |app| app.life.watchdog = Some(Duration::from_millis(1500))).unwrap();
        speaking.control = Some("/run/control.sock".into());
        assert!(speaking.listens_to_workers());
        let speaking = of(&speaking, Some(Path::new("/run/web.note")));
        assert_eq!(speaking["NOTIFY_SOCKET"].as_deref(), Some("/run/web.note"));
        assert_eq!(speaking["CONTROL_SOCKET"].as_deref(), Some("/run/control.sock"));
        assert_eq!(speaking["WATCHDOG_USEC"].as_deref(), Some("1500000"));
    }

    #[test]
    fn what_is_meant_for_the_server_is_known_by_its_name() {
        for (name, expected) in [
            ("WEB_CONCURRENCY", true),
            ("RIP_MAX_QUEUE", true),
            ("PRODUCTION_SERVER_WORKERS", true),
            ("RUNTIME_DIRECTORY", true),
            ("STATE_DIRECTORY", true),
            ("LISTEN_FDS", true),
            ("WATCHDOG_PID", true),
            ("CREDENTIALS_DIRECTORY", false),
            ("RIPPLE", false),
            ("MY_PORT", false),
            ("PATH", false),
        ] {
            assert_eq!(is_for_the_server(OsStr::new(name)), expected, "{name}");
        }
    }

    #[test]
    fn a_socket_to_speak_on_is_made_where_somebody_listens() {
        let listens = |change: fn(&mut App)| launcher("x", change).unwrap().listens_to_workers();
        assert!(!listens(|_| {}));
        assert!(listens(|app| app.life.ready.by = ReadyBy::Notify));
        assert!(listens(|app| app.life.watchdog = Some(Duration::from_secs(1))));
    }

    #[test]
    fn only_node_is_given_the_socket_as_port() {
        for (program, expected) in [("node", true), ("/usr/bin/nodejs", true), ("nodemon", false), ("deno", false)] {
            assert_eq!(is_node(OsStr::new(program)), expected, "{program}");
        }
    }
}
