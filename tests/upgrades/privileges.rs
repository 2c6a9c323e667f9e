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
    // The tests' binary may lie where nobody else may go.
    let folder = folder();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let program = path(&folder, "production_server");
    // By a process of its own: nobody whom another test starts meanwhile has it open for writing.
    assert!(Command::new("cp").args([PROGRAM, &program]).status().unwrap().success());
    let flags = ["-w", "1", "--user", "65534", "--group", "65534"];
    let line = Line::start_in(folder, Command::new(&program), backend, &flags);
    line.until_ready(1);
    let whole = |process: u32| {
        assert_eq!(owner(process), (NOBODY, NOBODY));
        let below = Process::below(process).into_iter().filter(|one| one.parent == process);
        below.for_each(|one| assert_eq!(owner(one.id), (NOBODY, NOBODY), "{one:?}"));
        let entry = std::fs::read_to_string("/etc/passwd").unwrap();
        let entry: Vec<&str> = entry
            .lines()
            .map(|line| line.split(':').collect())
            .find(|of: &Vec<&str>| of.get(2) == Some(&"65534"))
            .unwrap();
        let variables =
            Process::below(process).into_iter().filter_map(|one| fs::read(format!("/proc/{}/environ", one.id)).ok());
        let variables: Vec<String> = variables.map(|all| String::from_utf8_lossy(&all).replace('\0', "\n")).collect();
        let of_worker = variables.iter().find(|all| all.lines().any(|line| line == "WORKER_ID=1")).expect("a worker");
        for expected in [format!("HOME={}", entry[5]), format!("USER={}", entry[0]), format!("LOGNAME={}", entry[0])] {
            assert!(of_worker.lines().any(|line| line == expected), "{expected}: {of_worker}");
        }
        for made in [line.run(), line.folder.path().join("pid")] {
            assert_eq!(fs::metadata(made).unwrap().uid(), NOBODY);
        }
    };
    whole(line.process());
    whole(line.upgraded());
    assert_eq!(line.server.client().get("/ping").text(), "pong");
    let run = line.run().display().to_string();
    line.stop();
    let mut refused = Command::new(PROGRAM);
    refused.args(["--user", "no-such-user", "--listen", "127.0.0.1:0", "--run-dir", &run]);
    let refused = refused.output().unwrap();
    assert_eq!(refused.status.code(), Some(78));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("there is no such user"));
}
