//! What the Debian package does with a server that runs when a newer one is installed: its script, with systemd's programs set aside.

use super::*;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/debian/postinst");

on_every_backend! {
    a_newer_package_upgrades_a_server_that_runs_and_restarts_one_that_cannot_be,
}

/// A root with the program in it, and programs aside that note how they were called.
struct Root<'a>(&'a Line);

impl Root<'_> {
    fn make(&self) {
        let root = self.0.folder.path().join("root");
        for folder in ["usr/bin", "run", "aside", "etc/production_server"] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        std::os::unix::fs::symlink(PROGRAM, root.join("usr/bin/production_server")).unwrap();
        fs::write(root.join("etc/production_server/production_server.toml"), "# All defaults.\n").unwrap();
        for (name, does) in [
            ("getent", ""),
            ("deb-systemd-invoke", ""),
            ("systemctl", "case \"$*\" in *is-active*) [ -e \"$DPKG_ROOT/active\" ] ;; esac"),
        ] {
            let script = format!("echo \"{name} $*\" >>\"$DPKG_ROOT/called\"\n{does}");
            self.0.script(&format!("root/aside/{name}"), &script);
        }
    }

    /// The package is configured, with the version that was there before, and what was called of the programs aside.
    fn configure(&self, arguments: &[&str]) -> Vec<String> {
        let root = self.0.folder.path().join("root");
        fs::write(root.join("called"), "").unwrap();
        let path = format!("{}:/usr/bin:/bin", root.join("aside").display());
        let mut command = Command::new("sh");
        command.arg(SCRIPT).args(arguments).env_clear().env("PATH", path).env("DPKG_ROOT", &root);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        fs::read_to_string(root.join("called")).unwrap().lines().map(str::to_owned).collect()
    }
}

fn a_newer_package_upgrades_a_server_that_runs_and_restarts_one_that_cannot_be(backend: &str) {
    let line = Line::start(backend, &["-w", "1"]);
    line.until_ready(1);
    let (root, here) = (Root(&line), |name: &str| line.folder.path().join("root").join(name));
    root.make();
    let restarted =
        |called: &[String]| called.iter().any(|line| line == "deb-systemd-invoke restart production_server.service");
    let before = line.process();
    // Neither one that does not run, nor at the first installation.
    assert!(!restarted(&root.configure(&["configure", "0.0.1"])));
    fs::write(here("active"), "").unwrap();
    assert!(!restarted(&root.configure(&["configure", ""])));
    assert!(restarted(&root.configure(&["configure", "0.0.1"])), "nobody is where it should be");
    assert_eq!(line.process(), before);
    std::os::unix::fs::symlink(line.run(), here("run/production_server")).unwrap();
    let crowd = Crowd::begin(&line, 2, 2);
    assert!(!restarted(&root.configure(&["configure", "0.0.1"])));
    assert_ne!(line.process(), before);
    crowd.end();
    line.stop();
}
