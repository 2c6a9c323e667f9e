//! A server that gives its privileges up, before and after an upgrade.

use std::os::unix::fs::MetadataExt;

use super::*;

const NOBODY: u32 = 65_534;

on_every_backend! {
    server_and_workers_are_that_user_for_good,
}

fn owner(process: u32) -> (u32, u32) {
    let metadata = fs::metadata(format!("/proc/{process}")).unwrap();
    (metadata.uid(), metadata.gid())
}

fn server_and_workers_are_that_user_for_good(backend: &str) {
    if owner(std::process::id()).0 != 0 {
        return eprintln!("skipped: only root may become another user");
    }
    // The binary may lie where nobody else may go: it is started from a folder where all may.
    let outside = folder();
    fs::set_permissions(outside.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let program = path(&outside, "production_server");
    fs::copy(PROGRAM, &program).unwrap();
    let (run, pid) = (path(&outside, "run"), path(&outside, "pid"));
    let flags = ["-w", "1", "--user", "65534", "--group", "65534", "--run-dir", &run, "--pid-file", &pid];
    // The command for the workers must be one that this user may run, too.
    let command = ["--", &program, "worker"];
    let server = Server::start_as(Command::new(&program), backend, &[&flags[..], &command].concat());
    until("the worker is ready", || ask(Path::new(&run)).is_some_and(|status| status["apps"][0]["workers_ready"] == 1));
    let whole = |process: u32| {
        assert_eq!(owner(process), (NOBODY, NOBODY));
        let below = Process::below(process);
        assert!(
            below.iter().filter(|one| one.parent == process).all(|one| owner(one.id) == (NOBODY, NOBODY)),
            "{below:?}"
        );
        assert_eq!(fs::metadata(&run).unwrap().uid(), NOBODY);
        assert_eq!(fs::metadata(&pid).unwrap().uid(), NOBODY);
    };
    let before = ask(Path::new(&run)).unwrap()["pid"].as_u64().unwrap() as u32;
    whole(before);
    let word = |words: &[&str]| {
        let output = Command::new(&program).args(words).args(["--run-dir", &run]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    word(&["upgrade", "--wait"]);
    let after = ask(Path::new(&run)).unwrap()["pid"].as_u64().unwrap() as u32;
    assert_ne!(before, after);
    whole(after);
    assert_eq!(server.client().get("/ping").text(), "pong");
    word(&["stop"]);
    drop(server);
    let refused =
        Command::new(&program).args(["--user", "no-such-user", "--listen", "127.0.0.1:0", "--run-dir", &run]).output();
    let refused = refused.unwrap();
    assert_eq!(refused.status.code(), Some(78));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("there is no such user"));
}
