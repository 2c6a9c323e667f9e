//! `production_server init`: a first configuration file for the app that lies in a directory, with the reason for what it says.
//!
//! It looks at files alone, runs nothing of the app, and never writes over a file.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{self, ErrorKind, Read, Write};
use std::path::Path;

use crate::config::FILE_NAME;
use crate::supervisor::program;

/// Exit code for a file that cannot be made (EX_CANTCREAT of sysexits(3)).
const CANNOT_CREATE: u8 = 73;
/// Exit code for what this user may not do (EX_NOPERM).
const NOT_PERMITTED: u8 = 77;
/// Of files that are looked into, so many bytes are read.
const MOST_READ: u64 = 1 << 20;

/// What was found.
#[derive(Debug, PartialEq, Eq)]
pub struct Found {
    /// What it is and which file shows it, as in `a Django project: manage.py`.
    pub why: String,
    /// What its workers run; empty for the built-in worker.
    pub command: Vec<String>,
    /// What else is to be known, each a line above the command.
    pub notes: Vec<&'static str>,
    /// Further keys of the app, each with its value.
    pub keys: Vec<&'static str>,
}

/// Writes the file and says what it is for. The exit code.
pub fn run(directory: &Path) -> u8 {
    let found = look(directory);
    let path = directory.join(FILE_NAME);
    let made = OpenOptions::new().write(true).create_new(true).open(&path);
    let written = made.and_then(|mut file| file.write_all(text(&found).as_bytes()));
    if let Err(error) = written {
        let (what, code) = match error.kind() {
            ErrorKind::AlreadyExists => (format!("{FILE_NAME} is here already, and stays as it is"), CANNOT_CREATE),
            ErrorKind::PermissionDenied => (format!("{FILE_NAME}: this user may not write here"), NOT_PERMITTED),
            _ => (format!("{FILE_NAME} cannot be written: {error}"), CANNOT_CREATE),
        };
        // There is no other place to say it.
        let _ = writeln!(io::stderr(), "error: {what}");
        return code;
    }
    let mut said = format!("{FILE_NAME}: written for {}\n", found.why);
    let words: Vec<OsString> = found.command.iter().map(OsString::from).collect();
    if let Err(what) = program::check(&words, Some(directory))
        && !words.is_empty()
    {
        said += &format!("note: {what}\n");
    }
    said += "next: production_server check, and then production_server\n";
    // The file is written, whether anybody reads this or not.
    let _ = io::stdout().write_all(said.as_bytes());
    0
}

/// What lies in a directory: whoever says most plainly what the app is comes first.
pub fn look(directory: &Path) -> Found {
    let ways = [procfile, django, package, rack, python, go];
    ways.into_iter().find_map(|way| way(directory)).unwrap_or_else(|| found(nothing_known(directory), &[]))
}

/// Why it is the built-in worker: nothing that is known is here, or what is here does not say enough.
fn nothing_known(directory: &Path) -> String {
    let known = ["Procfile", "manage.py", "package.json", "config.ru"].into_iter().chain(OF_PYTHON).chain(["go.mod"]);
    let here: Vec<&str> = known.filter(|name| directory.join(name).exists()).collect();
    let why = match here[..] {
        [] => "no package.json, manage.py, app.py, config.ru, go.mod or Procfile is here".to_owned(),
        [name] => format!("{name} is here, and does not say how the app is started"),
        _ => format!("{} are here, and none says how the app is started", here.join(", ")),
    };
    format!("the built-in demo worker: {why}")
}

/// The file.
pub fn text(found: &Found) -> String {
    let Found { why, command, notes, keys } = found;
    let words: Vec<String> = command.iter().map(|word| quoted(word)).collect();
    let command = match command.is_empty() {
        true => {
            "# command = [\"node\", \"server.js\"]  # what the workers run; {socket} stands for a worker's socket\n"
                .to_owned()
        }
        false => format!("command = [{}]\n", words.join(", ")),
    };
    let notes: String = notes.iter().map(|note| format!("# {note}\n")).collect();
    let keys: String = keys.iter().map(|key| format!("{key}\n")).collect();
    format!(
        "# Written by `production_server init` for {why}.
# Look at it with `production_server check`, see what holds with `production_server config show --effective`.

[[listen]]
address = \"0.0.0.0:8080\"
# address = \"unix:/run/app.sock\"         # with mode, owner and group, for a proxy on this machine

[apps.web]
{notes}{command}{keys}# workers = 4                             # or \"auto\", one per core and at least 2, or {{ min = 2, max = 8 }}
# ready = {{ http = \"/ready\", timeout = \"15s\" }}
# timeouts = {{ read = \"5s\", request = \"30s\" }}
# health = {{ path = \"/healthz\", interval = \"10s\" }}  # each worker is asked, and replaced when it fails three times in a row
# recycle = {{ requests = 10_000, lifetime = \"1h\", memory = \"400MiB\" }}

# [hub.hub]                               # WebSockets and event streams at /api/v1/listen: docs/hub.md
# origins = [\"same\"]

# [log]
# access = \"/var/log/access.log\"          # or false
# format = \"json\"
"
    )
}

/// A string of TOML that the reader of the file leaves as it is.
fn quoted(word: &str) -> String {
    crate::config::toml_string(&word.replace("${", "$${"))
}

/// The beginning of a file, or `None` where there is none that can be read.
fn read(directory: &Path, name: &str) -> Option<String> {
    let path = directory.join(name);
    // A pipe would be waited for.
    path.metadata().ok().filter(std::fs::Metadata::is_file)?;
    let mut bytes = Vec::new();
    std::fs::File::open(path).ok()?.take(MOST_READ).read_to_end(&mut bytes).ok()?;
    // Editors of Windows begin a file with U+FEFF.
    Some(String::from_utf8_lossy(&bytes).trim_start_matches('\u{feff}').to_owned())
}

fn found(why: impl Into<String>, command: &[&str]) -> Found {
    let command = command.iter().map(|word| (*word).to_owned()).collect();
    Found { why: why.into(), command, notes: Vec::new(), keys: Vec::new() }
}

/// Whether a line is words between blanks and nothing that only a shell understands.
fn is_plain(line: &str) -> bool {
    !line.contains(|letter: char| "$\"'`\\;|&<>(){}[]*?~#!".contains(letter) || letter.is_control())
        && line.split_whitespace().next().is_some_and(|first| !first.contains('='))
}

fn procfile(directory: &Path) -> Option<Found> {
    let text = read(directory, "Procfile")?;
    let line =
        text.lines().find_map(|line| line.strip_prefix("web:")).map(str::trim).filter(|line| !line.is_empty())?;
    let why = "the process web: Procfile";
    let mut app = if is_plain(line) {
        found(why, &line.split_whitespace().collect::<Vec<_>>())
    } else {
        // With exec the app itself gets signals, where it is one command.
        let first = line.split_whitespace().next().unwrap_or_default();
        let single = !line.contains(['&', ';', '|']) && !first.contains('=') && !line.starts_with("exec ");
        let script = if single { format!("exec {line}") } else { line.to_owned() };
        found(why, &["sh", "-c", &script])
    };
    app.notes.push("A command of a Procfile listens on $PORT; each worker gets a port of its own.");
    app.keys.push("socket = \"tcp\"");
    Some(app)
}

fn django(directory: &Path) -> Option<Found> {
    read(directory, "manage.py")?;
    let mut packages: Vec<String> = directory
        .read_dir()
        .ok()?
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_'))
        .collect();
    packages.sort();
    let has = |kind: &str| packages.iter().find(|package| directory.join(package).join(kind).is_file());
    if let Some(package) = has("wsgi.py") {
        let module = format!("{package}.wsgi:application");
        return Some(found(format!("a Django project: manage.py and {package}/wsgi.py"), &gunicorn(&module)));
    }
    let package = has("asgi.py")?;
    let module = format!("{package}.asgi:application");
    let why = format!("a Django project: manage.py and {package}/asgi.py");
    Some(Found { keys: vec![MANY], ..found(why, &uvicorn(&module)) })
}

/// Workers that serve many requests at once.
const MANY: &str = "concurrency = 64                         # requests at a time in each worker";

/// Puma's own number of threads, where nothing else is said.
const THREADS: &str =
    "concurrency = 5                          # requests at a time in each worker: as many as it has threads";

fn gunicorn(module: &str) -> [&str; 4] {
    ["gunicorn", "--bind", "unix:{socket}", module]
}

fn uvicorn(module: &str) -> [&str; 4] {
    ["uvicorn", "--uds", "{socket}", module]
}

fn package(directory: &Path) -> Option<Found> {
    let text = read(directory, "package.json")?;
    let package: serde_json::Value = serde_json::from_str(&text).ok()?;
    let start = package.pointer("/scripts/start").and_then(serde_json::Value::as_str).map(str::trim);
    if let Some(start) = start.filter(|start| !start.is_empty()) {
        let words: Vec<&str> = start.split_whitespace().collect();
        if is_plain(start) && matches!(words[0], "node" | "bun") {
            let notes = vec!["What `npm start` runs, without npm, so that the app itself gets signals."];
            let app = found("a Node app: the script start in package.json", &words);
            return Some(Found { notes, keys: vec![MANY], ..app });
        }
        let locks = [("bun.lock", "bun"), ("bun.lockb", "bun"), ("pnpm-lock.yaml", "pnpm"), ("yarn.lock", "yarn")];
        let runner = locks.iter().find(|(lock, _)| directory.join(lock).exists()).map_or("npm", |(_, runner)| runner);
        let notes = vec!["Behind a runner of scripts the app listens on $PORT; each worker gets a port of its own."];
        let keys = vec!["socket = \"tcp\"", MANY];
        let why = "a Node app: the script start in package.json";
        return Some(Found { notes, keys, ..found(why, &[runner, "run", "start"]) });
    }
    let main = package.get("main").and_then(serde_json::Value::as_str);
    let usual = ["server.js", "index.js", "app.js", "server.mjs", "index.mjs"];
    let main = main.into_iter().chain(usual).find(|name| directory.join(name).is_file())?;
    let notes = vec!["For node PORT is the worker's socket, so that listen(process.env.PORT) needs no change."];
    let app = found(format!("a Node app: package.json and {main}"), &["node", main]);
    Some(Found { notes, keys: vec![MANY], ..app })
}

fn rack(directory: &Path) -> Option<Found> {
    read(directory, "config.ru")?;
    let puma = ["puma", "--bind", "unix://{socket}"];
    let app = if directory.join("Gemfile").is_file() {
        found("a Rack app: config.ru and Gemfile", &[&["bundle", "exec"][..], &puma].concat())
    } else {
        found("a Rack app: config.ru", &puma)
    };
    Some(Found { keys: vec![THREADS], ..app })
}

/// Where an app in Python may lie.
const OF_PYTHON: [&str; 6] = ["app.py", "main.py", "application.py", "asgi.py", "wsgi.py", "server.py"];

fn python(directory: &Path) -> Option<Found> {
    OF_PYTHON.into_iter().find_map(|file| {
        let text = read(directory, file)?;
        let module = file.strip_suffix(".py")?;
        let made = |classes: &[&str]| text.lines().find_map(|line| variable(line, classes));
        if let Some(name) = made(&["FastAPI(", "Starlette(", "Quart(", "Litestar(", "get_asgi_application("]) {
            let why = format!("an ASGI app: `{name}` in {file}");
            return Some(Found { keys: vec![MANY], ..found(why, &uvicorn(&format!("{module}:{name}"))) });
        }
        if let Some(name) = made(&["Flask(", "Bottle(", "falcon.App(", "get_wsgi_application("]) {
            return Some(found(format!("a WSGI app: `{name}` in {file}"), &gunicorn(&format!("{module}:{name}"))));
        }
        let defines =
            |start: &str| ["application", "app"].into_iter().find(|name| text.contains(&format!("{start} {name}(")));
        // `async def` has `def` in it.
        if let Some(name) = defines("\nasync def") {
            let why = format!("an ASGI app: `{name}` in {file}");
            return Some(Found { keys: vec![MANY], ..found(why, &uvicorn(&format!("{module}:{name}"))) });
        }
        let name = defines("\ndef")?;
        Some(found(format!("a WSGI app: `{name}` in {file}"), &gunicorn(&format!("{module}:{name}"))))
    })
}

/// The name in a line at the left edge such as `app = FastAPI(title="x")`.
fn variable<'a>(line: &'a str, classes: &[&str]) -> Option<&'a str> {
    let (name, value) = line.split_once('=')?;
    // Annotated, as in `app: Flask = Flask(__name__)`.
    let name = name.split(':').next()?.trim_end();
    let plain = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    let made =
        classes.iter().any(|class| value.trim_start().starts_with(class) || value.contains(&format!(".{class}")));
    (plain && made).then_some(name)
}

fn go(directory: &Path) -> Option<Found> {
    let text = read(directory, "go.mod")?;
    let module = text.lines().find_map(|line| line.strip_prefix("module "))?;
    let module = module.split("//").next()?.trim().trim_matches('"');
    let last = module.rsplit('/').find(|part| !is_version(part))?;
    let plain = !last.is_empty() && last.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    let program = format!("./{last}");
    let notes = vec![
        "`go build` makes this program. It is to listen on the Unix socket at $SOCKET_PATH, as in net.Listen(\"unix\", os.Getenv(\"SOCKET_PATH\")).",
    ];
    plain.then(|| Found { notes, keys: vec![MANY], ..found("a Go module: go.mod", &[&program]) })
}

/// The version at the end of a module's path, as `v2`.
fn is_version(part: &str) -> bool {
    part.strip_prefix('v').is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(files: &[(&str, &str)]) -> Found {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        look(folder.path())
    }

    #[test]
    fn each_kind_of_app_is_known_by_its_files() {
        let start = |script: &str| format!(r#"{{"scripts": {{"start": "{script}"}}}}"#);
        let (node, next) = (start("node server.js --x"), start("NODE_ENV=production next start"));
        let marked = format!("\u{feff}{node}");
        /// Files, the command, and a word of the reason.
        type Case<'a> = (&'a [(&'a str, &'a str)], &'a [&'a str], &'a str);
        let cases: [Case<'_>; 20] = [
            (&[("Procfile", "worker: x\nweb: puma -C x.rb\n")], &["puma", "-C", "x.rb"], "Procfile"),
            (&[("Procfile", "web: gunicorn -b :$PORT app")], &["sh", "-c", "exec gunicorn -b :$PORT app"], "Procfile"),
            (&[("Procfile", "web: A=1 ./x && ./y")], &["sh", "-c", "A=1 ./x && ./y"], "Procfile"),
            (&[("manage.py", ""), ("site/wsgi.py", "")], &gunicorn("site.wsgi:application"), "Django"),
            (&[("manage.py", ""), ("site/asgi.py", "")], &uvicorn("site.asgi:application"), "Django"),
            (&[("package.json", &node)], &["node", "server.js", "--x"], "start"),
            (&[("package.json", &next)], &["npm", "run", "start"], "start"),
            (&[("package.json", &next), ("bun.lock", "")], &["bun", "run", "start"], "start"),
            (&[("package.json", &next), ("pnpm-lock.yaml", "")], &["pnpm", "run", "start"], "start"),
            (&[("package.json", &next), ("yarn.lock", "")], &["yarn", "run", "start"], "start"),
            (&[("package.json", &marked)], &["node", "server.js", "--x"], "start"),
            (&[("package.json", r#"{"main": "lib/a.js"}"#), ("lib/a.js", "")], &["node", "lib/a.js"], "lib/a.js"),
            (&[("package.json", "{}"), ("index.js", "")], &["node", "index.js"], "index.js"),
            (&[("config.ru", "")], &["puma", "--bind", "unix://{socket}"], "Rack"),
            (
                &[("config.ru", ""), ("Gemfile", "")],
                &["bundle", "exec", "puma", "--bind", "unix://{socket}"],
                "Gemfile",
            ),
            (&[("main.py", "import x\napi: FastAPI = FastAPI(title='x')\n")], &uvicorn("main:api"), "ASGI"),
            (&[("app.py", "app = flask.Flask(__name__)\n")], &gunicorn("app:app"), "WSGI"),
            (&[("wsgi.py", "x\ndef application(environ, start):\n")], &gunicorn("wsgi:application"), "WSGI"),
            (&[("go.mod", "module example.org/shop/v2\n")], &["./shop"], "Go"),
            (&[("go.mod", "module example.org/shop // the shop\n")], &["./shop"], "Go"),
        ];
        for (files, command, why) in cases {
            let found = of(files);
            assert_eq!(found.command, command, "{files:?}");
            assert!(found.why.contains(why), "{}", found.why);
        }
        for nothing in [&[][..], &[("package.json", "no JSON")], &[("package.json", "{}")], &[("app.py", "x = 1")]] {
            assert!(of(nothing).command.is_empty(), "{nothing:?}");
        }
    }

    #[test]
    fn what_is_here_and_says_too_little_is_named() {
        let why = |files| of(files).why;
        assert!(why(&[]).contains("no package.json, manage.py, app.py"), "{}", why(&[]));
        let factory: &[(&str, &str)] = &[("app.py", "def create_app():\n    return Flask(__name__)\n")];
        assert!(why(factory).ends_with("app.py is here, and does not say how the app is started"), "{}", why(factory));
        let both = [("go.mod", "go 1.22\n"), ("package.json", "{}")];
        assert!(why(&both).ends_with("package.json, go.mod are here, and none says how the app is started"));
    }

    #[test]
    fn workers_that_serve_many_requests_at_once_are_given_many() {
        let keys = |files| of(files).keys;
        assert_eq!(keys(&[("package.json", r#"{"scripts": {"start": "node x.js"}}"#)]), [MANY]);
        assert_eq!(keys(&[("package.json", r#"{"scripts": {"start": "next start"}}"#)]), ["socket = \"tcp\"", MANY]);
        assert_eq!(keys(&[("package.json", "{}"), ("index.js", "")]), [MANY]);
        assert_eq!(keys(&[("config.ru", "")]), [THREADS]);
        assert!(keys(&[("app.py", "app = flask.Flask(__name__)\n")]).is_empty());
    }
}
