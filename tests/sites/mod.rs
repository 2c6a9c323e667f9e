//! Several apps, hosts and routes from one configuration file, in the built server.

use std::fs;
use std::process::Command;

use serde_json::Value;

use crate::support::{Client, PROGRAM, folder, on_every_backend, python, until};
use crate::upgrades::{Line, path};

mod apps;
mod keys;
pub mod reload;

/// A worker that says which app it is of and what it was asked. In its folder, the file `NAME.crash` lets it end as it starts; a request
/// for `/block` is answered once there is `NAME.go`.
const WORKER: &str = "
import http.server, os, socketserver, sys, time
name, folder = sys.argv[1:3]
print('worker of', name, file=sys.stderr, flush=True)
def is_there(what):
    return os.path.exists(os.path.join(folder, name + '.' + what))
if is_there('crash'):
    sys.exit('as it was told')
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def do_GET(self):
        while self.path == '/block' and not is_there('go'):
            time.sleep(0.01)
        body = f'{name} {self.path}'.encode()
        self.send_response(200)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
class Front(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
Front(os.environ['SOCKET_PATH'], Handler).serve_forever()
";

/// A server with a configuration file of its own.
pub struct Site {
    pub line: Line,
    file: String,
}

impl Site {
    /// A server of that file, in which `FOLDER` stands for its folder and `PYTHON` for the words of the worker above, to which its
    /// name is to be added.
    fn start(backend: &str, text: &str) -> Site {
        Site::start_as(Command::new(PROGRAM), backend, text)
    }

    /// With a program before it.
    fn start_as(command: Command, backend: &str, text: &str) -> Site {
        let folder = folder();
        let (file, worker) = (path(&folder, "site.toml"), path(&folder, "worker.py"));
        fs::write(&worker, WORKER).unwrap();
        fs::write(&file, Site::text(folder.path().to_str().unwrap(), text)).unwrap();
        let line = Line::start_in(folder, command, backend, &["-f", &file]);
        Site { line, file }
    }

    fn text(folder: &str, text: &str) -> String {
        let words = format!("\"{}\", \"{folder}/worker.py\"", python());
        text.replace("PYTHON", &words).replace("FOLDER", folder)
    }

    /// Puts another text into the file.
    pub fn write(&self, text: &str) {
        fs::write(&self.file, Site::text(self.line.folder.path().to_str().unwrap(), text)).unwrap();
    }

    /// Makes a file in the folder, or removes it.
    fn tell(&self, name: &str, there: bool) {
        let file = path(&self.line.folder, name);
        if there { fs::write(&file, "").unwrap() } else { fs::remove_file(&file).unwrap() }
    }

    pub fn client(&self) -> Client {
        self.line.server.client()
    }

    /// What a new client is answered: the status, and the text.
    pub fn get(&self, host: &str, path: &str) -> (u16, String) {
        get(&mut self.client(), host, path)
    }

    /// An app in the status document.
    pub fn app(&self, name: &str) -> Value {
        let status = self.line.status();
        status["apps"].as_array().unwrap().iter().find(|app| app["name"] == name).cloned().unwrap_or(Value::Null)
    }

    /// Waits until all workers of all apps are ready.
    pub fn until_ready(&self) {
        until("all workers are ready", || {
            let status = self.line.status();
            status["apps"].as_array().unwrap().iter().all(|app| app["workers_ready"] == app["workers_wanted"])
        });
    }

    /// The processes of an app's workers.
    pub fn pids(&self, name: &str) -> Vec<Value> {
        self.app(name)["workers"].as_array().unwrap().iter().map(|worker| worker["pid"].clone()).collect()
    }

    /// What that word on the command line says; it must succeed.
    pub fn word(&self, words: &[&str]) -> String {
        let (code, said) = self.line.word(words);
        assert_eq!(code, Some(0), "{words:?}: {said}");
        said
    }
}

/// What a client is answered: the status, and the text.
pub fn get(client: &mut Client, host: &str, path: &str) -> (u16, String) {
    let answer = client.ask(&format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
    (answer.status, answer.text())
}
