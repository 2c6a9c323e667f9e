//! Who gets in, and how often: addresses, limits, and credentials.

mod credentials;
mod forward;
mod key_sets;
mod limits;

use std::path::PathBuf;

use crate::support::{Server, Worker, folder};

/// A server with a configuration file of its own.
struct Site {
    server: Server,
    worker: Worker,
    folder: tempfile::TempDir,
}

impl Site {
    /// Writes the file anew, and has it read.
    fn reload(&self, file: &str) -> std::process::Output {
        std::fs::write(self.path(), self.filled(file)).unwrap();
        let run = self.server.run().display().to_string();
        let words = ["reload", "--wait", "--run-dir", &run];
        std::process::Command::new(crate::support::PROGRAM).args(words).output().unwrap()
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("site.toml")
    }

    fn filled(&self, file: &str) -> String {
        filled(file, &self.worker, &self.folder)
    }
}

/// `{worker}` is the worker that tells what it was asked, `{folder}` where the file lies.
fn filled(file: &str, worker: &Worker, folder: &tempfile::TempDir) -> String {
    file.replace("{worker}", &worker.url).replace("{folder}", folder.path().to_str().unwrap())
}

/// A server with that file, and these beside it.
fn site(backend: &str, file: &str, others: &[(&str, &str)]) -> Site {
    let (folder, worker) = (folder(), Worker::echo());
    for (name, text) in others {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    let path = folder.path().join("site.toml");
    std::fs::write(&path, filled(file, &worker, &folder)).unwrap();
    let server = Server::start(backend, &["-f", path.to_str().unwrap()]);
    Site { server, worker, folder }
}
