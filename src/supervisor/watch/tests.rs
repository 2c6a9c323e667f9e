//! Tests of the watching: on real files, with what may be missed made visible by a change behind it that may not.

use std::os::unix::fs::symlink;
use std::process::Command as Process;
use std::sync::mpsc;

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);

/// A watcher on a directory of its own.
struct Rig {
    watcher: Option<Watcher>,
    wakes: mpsc::Receiver<()>,
    root: PathBuf,
    /// What was expected so far: on a busy machine a change may be reported once more.
    expected: BTreeSet<String>,
    _directory: tempfile::TempDir,
}

impl Rig {
    fn new(files: &[&str]) -> Rig {
        // By default the directory's name is a hidden one, and such are left out.
        let directory = tempfile::Builder::new().prefix("watch").tempdir().unwrap();
        let root = fs::canonicalize(directory.path()).unwrap();
        let (_, wakes) = mpsc::channel();
        let rig = Rig { watcher: None, wakes, root, expected: BTreeSet::new(), _directory: directory };
        files.iter().for_each(|file| rig.write(file, "0"));
        rig
    }

    fn watch(mut self, given: &[&str]) -> Rig {
        let given: Vec<PathBuf> = given.iter().map(PathBuf::from).collect();
        let targets = Targets::find(&given, &[], &[], &[PathBuf::from("run")], &self.root);
        let (waker, wakes) = mpsc::channel();
        self.wakes = wakes;
        let wake = move || waker.send(()).unwrap_or(());
        let watcher = self.watcher.insert(Watcher::start_for(targets, self.root.clone(), wake).unwrap());
        until_watched(watcher, &self.wakes);
        self
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn watcher(&self) -> &Watcher {
        self.watcher.as_ref().unwrap()
    }

    /// Waits until these are reported. What was never expected must not be.
    fn expect(&mut self, names: &[&str]) {
        self.expected.extend(names.iter().map(|&name| name.to_owned()));
        let mut missing: BTreeSet<String> = names.iter().map(|&name| name.to_owned()).collect();
        let deadline = Instant::now() + PATIENCE;
        while !missing.is_empty() {
            let woken = self.wakes.recv_timeout(deadline.saturating_duration_since(Instant::now()));
            woken.unwrap_or_else(|_| panic!("not reported: {missing:?}"));
            let changes = self.watcher().take_changes().unwrap_or_default();
            assert_eq!(changes.more, 0, "{changes:?}");
            for name in changes.paths.iter().map(|path| path.display().to_string()) {
                assert!(self.expected.contains(&name), "{name} is no change");
                missing.remove(&name);
            }
        }
    }
}

/// All is watched; what it is.
fn until_watched(watcher: &Watcher, wakes: &mpsc::Receiver<()>) -> String {
    loop {
        wakes.recv_timeout(PATIENCE).expect("all is watched");
        if let Some(summary) = watcher.take_summary() {
            return summary;
        }
    }
}

/// The look through a large tree takes its time, and nobody waits for it.
#[test]
fn what_changes_before_all_is_watched_is_seen_and_what_had_changed_before_is_not() {
    let rig = Rig::new(&["old.js", "new.js", "future.js"]);
    for (name, ago) in [("old.js", 60), ("new.js", 10), ("future.js", -60)] {
        let seconds = Duration::from_secs(i32::unsigned_abs(ago).into());
        let time = if ago > 0 { SystemTime::now() - seconds } else { SystemTime::now() + seconds };
        fs::File::options().write(true).open(rig.path(name)).unwrap().set_modified(time).unwrap();
    }
    let targets = Targets::find(&[PathBuf::from(".")], &[], &[], &[], &rig.root);
    let mut observer = observer(&rig, targets);
    observer.changed_since = Some(SystemTime::now() - Duration::from_secs(30));
    observer.begin();
    let changes = observer.report().changes.take().unwrap();
    assert_eq!((changes.paths, changes.more), (vec![PathBuf::from("new.js")], 0));
}

fn observer(rig: &Rig, targets: Targets) -> Observer {
    let (inbox, _messages) = sync_channel(1);
    Observer {
        notify: notify::recommended_watcher(forward(inbox, Arc::default())).unwrap(),
        targets,
        plan: Plan::default(),
        watched: BTreeSet::new(),
        burst: Burst::default(),
        lost: Arc::default(),
        here: rig.root.clone(),
        real_here: rig.root.clone(),
        said: BTreeSet::new(),
        changed_since: None,
        report: Arc::default(),
        on_change: Box::new(|| ()),
    }
}

#[test]
fn writing_and_renaming_over_a_file_are_changes_again_and_again() {
    let mut rig = Rig::new(&["app.js", "other.js"]).watch(&["app.js"]);
    for round in 0..3 {
        rig.write("app.js", &format!("written {round}"));
        rig.expect(&["app.js"]);
        rig.write("app.js.new", "renamed");
        fs::rename(rig.path("app.js.new"), rig.path("app.js")).unwrap();
        rig.write("other.js", "in the same directory, and not asked for");
        rig.expect(&["app.js"]);
    }
}

#[test]
fn reading_and_noise_are_no_changes() {
    let mut rig = Rig::new(&["src/app.js", "src/node_modules/a.js", "src/old.js"]).watch(&["src"]);
    assert_eq!(fs::read(rig.path("src/app.js")).unwrap(), b"0");
    rig.write("src/.app.js.swp", "an editor's");
    rig.write("src/node_modules/a.js", "a dependency");
    rig.write("src/debug.log", "a log");
    let socket = std::os::unix::net::UnixListener::bind(rig.path("src/s")).unwrap();
    fs::create_dir(rig.path("src/empty")).unwrap();
    fs::remove_file(rig.path("src/old.js")).unwrap();
    rig.expect(&["src/old.js"]);
    drop(socket);
}

#[test]
fn what_came_and_went_within_a_burst_is_no_change_and_what_was_there_before_is_one() {
    let rig = Rig::new(&["a.js"]);
    let (new, old) = (Touch { created: true, content: true }, Touch { created: false, content: true });
    assert_eq!(look(&rig.path("4913"), new, false), Seen::Nothing);
    assert_eq!(look(&rig.path("gone.js"), old, false), Seen::Changed);
    assert_eq!(look(&rig.path("gone.js"), old, true), Seen::Nothing, "it is being replaced");
    assert_eq!(look(&rig.path("a.js"), new, false), Seen::Changed);
    assert_eq!(look(&rig.root, new, false), Seen::Directory);
}

#[test]
fn attributes_count_when_the_time_of_change_is_new() {
    let rig = Rig::new(&["src/app.js", "src/touched.js", "src/z.js"]);
    for name in ["src/app.js", "src/touched.js"] {
        let file = fs::File::options().write(true).open(rig.path(name)).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(3600)).unwrap();
    }
    let mut rig = rig.watch(&["src"]);
    let chmod = Process::new("chmod").arg("600").arg(rig.path("src/app.js")).status().unwrap();
    let touch = Process::new("touch").arg(rig.path("src/touched.js")).status().unwrap();
    assert!(chmod.success() && touch.success());
    rig.expect(&["src/touched.js"]);
}

#[test]
fn new_directories_are_watched_with_what_is_in_them() {
    let mut rig = Rig::new(&["src/app.js", "staging/deep/b.js", "staging/a.js"]).watch(&["src"]);
    fs::rename(rig.path("staging"), rig.path("src/part")).unwrap();
    rig.expect(&["src/part/a.js", "src/part/deep/b.js"]);
    rig.write("src/part/deep/c.js", "later");
    rig.expect(&["src/part/deep/c.js"]);
    // The directory makes room for another of its name.
    rig.write("next/deep/d.js", "0");
    fs::rename(rig.path("src/part"), rig.path("src.old")).unwrap();
    fs::rename(rig.path("next"), rig.path("src/part")).unwrap();
    rig.expect(&["src/part/deep/d.js"]);
    rig.write("src/part/deep/d.js", "again");
    rig.expect(&["src/part/deep/d.js"]);
    rig.write("src.old/deep/c.js", "no more of ours");
    rig.write("src/app.js", "1");
    rig.expect(&["src/app.js"]);
}

#[test]
fn a_link_that_is_switched_to_another_release_is_a_change_and_the_new_one_is_watched() {
    let rig = Rig::new(&["releases/1/app.js", "releases/2/app.js"]);
    symlink("releases/1", rig.path("current")).unwrap();
    let mut rig = rig.watch(&["current"]);
    rig.write("releases/1/app.js", "1");
    rig.expect(&["releases/1/app.js"]);
    symlink("releases/2", rig.path("current.new")).unwrap();
    fs::rename(rig.path("current.new"), rig.path("current")).unwrap();
    rig.expect(&["current", "releases/2/app.js"]);
    rig.write("releases/1/app.js", "of the past");
    rig.write("releases/2/app.js", "2");
    rig.expect(&["releases/2/app.js"]);
}

#[test]
fn the_directory_that_workers_start_in_may_be_a_link_that_is_switched() {
    let rig = Rig::new(&["releases/1/server.js", "releases/2/server.js"]);
    symlink("releases/1", rig.path("current")).unwrap();
    let mut settings = Settings::for_test();
    settings.app.program.directory = Some(rig.path("current"));
    settings.app.program.command = Command::Argv(vec!["node".into(), "server.js".into()]);
    let (waker, wakes) = mpsc::channel();
    let watcher = Watcher::start(&settings.app, &settings, move || waker.send(()).unwrap_or(())).unwrap();
    let summary = until_watched(&watcher, &wakes);
    assert!(summary.starts_with("server.js, . ("), "{summary}");
    let mut rig = Rig { watcher: Some(watcher), wakes, ..rig };
    symlink("releases/2", rig.path("current.new")).unwrap();
    fs::rename(rig.path("current.new"), rig.path("current")).unwrap();
    let current = rig.path("current").display().to_string();
    rig.expect(&[&current, "server.js"]);
    rig.write("releases/1/server.js", "of the past");
    rig.write("releases/2/lib/part.js", "2");
    rig.expect(&["lib/part.js"]);
}

#[test]
fn what_a_link_in_a_tree_leads_to_is_watched_wherever_it_lies() {
    let rig = Rig::new(&["src/app.js", "shared/part.js", "shared/other.js", "shared/own.log", "later/part.js"]);
    symlink("../shared/part.js", rig.path("src/part.js")).unwrap();
    symlink("../shared/own.log", rig.path("src/own")).unwrap();
    let mut rig = rig.watch(&["src"]);
    rig.write("shared/other.js", "nothing leads here");
    rig.write("shared/own.log", "noise");
    rig.write("shared/part.js", "1");
    rig.expect(&["shared/part.js"]);
    symlink("../later/part.js", rig.path("src/new.js")).unwrap();
    rig.expect(&["src/new.js", "later/part.js"]);
    rig.write("later/part.js", "1");
    rig.expect(&["later/part.js"]);
}

#[test]
fn a_path_that_does_not_exist_yet_is_seen_when_it_comes() {
    let mut rig = Rig::new(&["app.js"]).watch(&["build/handler.so"]);
    fs::create_dir(rig.path("build")).unwrap();
    rig.write("build/handler.so", "1");
    rig.expect(&["build/handler.so"]);
    fs::remove_file(rig.path("build/handler.so")).unwrap();
    rig.write("build/handler.so", "2");
    rig.expect(&["build/handler.so"]);
}

#[test]
fn many_changes_are_one_report_with_a_bounded_list() {
    let rig = Rig::new(&["src/a.js"]).watch(&["src"]);
    let names: Vec<String> = (0..MOST_NAMED + 5).map(|number| format!("src/{number:02}.js")).collect();
    names.iter().for_each(|name| rig.write(name, "1"));
    let mut seen = Changes::default();
    let deadline = Instant::now() + PATIENCE;
    while seen.paths.len() + seen.more < names.len() {
        rig.wakes.recv_timeout(deadline.saturating_duration_since(Instant::now())).unwrap();
        seen.merge(rig.watcher().take_changes().unwrap_or_default());
    }
    assert_eq!((seen.paths.len(), seen.more), (MOST_NAMED, 5));
    assert_eq!(seen.to_string(), format!("src/00.js and {} more", names.len() - 1));
    assert_eq!(rig.watcher().take_changes(), None);
}

#[test]
fn nothing_of_a_watcher_is_left_when_it_is_dropped() {
    let mut rig = Rig::new(&["src/a.js"]).watch(&["src"]);
    drop(rig.watcher.take());
    // The thread owned the other end.
    assert_eq!(rig.wakes.recv(), Err(mpsc::RecvError));
    let nothing = Watcher::start_for(Targets::default(), PathBuf::from("/"), || ()).unwrap_err();
    assert!(nothing.to_string().contains("--watch"), "{nothing}");
}

#[test]
fn settings_name_what_is_watched() {
    let rig = Rig::new(&["handler.so", "run/lock", "src/a.js", "access.out"]);
    let mut settings = Settings::for_test();
    settings.process.run_dir = rig.path("run");
    settings.logs.access.target = LogTarget::File(rig.path("access.out"));
    settings.logs.events.target = LogTarget::File(rig.path("events.out"));
    settings.telling.metrics.cloudwatch = Some(CloudWatch::File(rig.path("metrics.out")));
    settings.process.pid_file = Some(rig.path("pid"));
    settings.app.program.module = Some(rig.path("handler.so"));
    settings.app.reload.watch = vec![rig.root.clone()];
    let (waker, wakes) = mpsc::channel();
    let watcher = Watcher::start(&settings.app, &settings, move || waker.send(()).unwrap_or(())).unwrap();
    let summary = until_watched(&watcher, &wakes);
    assert!(summary.ends_with("handler.so (3 directories)"), "{summary}");
    let mut rig = Rig { watcher: Some(watcher), wakes, ..rig };
    rig.write("run/x", "ours");
    for name in ["access.out", "events.out", "metrics.out", "pid", "pid.77", "access.out.1", "events.out-20260101"] {
        rig.write(name, "ours");
    }
    rig.write("handler.so", "the module");
    let handler = rig.path("handler.so").display().to_string();
    rig.expect(&[&handler]);
}

#[test]
fn a_burst_ends_when_it_is_quiet_or_after_its_longest_time() {
    let start = Instant::now();
    let at = |millis| start + Duration::from_millis(millis);
    let mut burst = Burst::default();
    assert_eq!(burst.due(), None);
    burst.touch(Path::new("a"), true, true, at(0));
    assert_eq!(burst.due(), Some(at(100)));
    burst.touch(Path::new("a"), false, true, at(90));
    assert_eq!(burst.due(), Some(at(190)));
    assert!(burst.touched[Path::new("a")].created, "it began by being made");
    for millis in (150..=1950).step_by(50) {
        burst.touch(Path::new("b"), false, true, at(millis));
    }
    assert_eq!(burst.due(), Some(at(2000)));
    for number in 0..MOST_TOUCHED + 10 {
        burst.touch(&PathBuf::from(number.to_string()), false, true, at(1960));
    }
    assert!(burst.more && burst.touched.len() == MOST_TOUCHED);
}

#[test]
fn a_limit_of_the_system_is_named_with_its_setting() {
    let limit = notify::Error::new(notify::ErrorKind::MaxFilesWatch);
    let rig = Rig::new(&["src/a.js"]);
    let mut observer = observer(&rig, Targets::default());
    observer.trouble(&limit);
    let line = observer.report().trouble.take().unwrap();
    assert!(line.contains("fs.inotify.max_user_watches") || cfg!(not(target_os = "linux")), "{line}");
    observer.trouble(&limit);
    assert_eq!(observer.report().trouble, None, "it is told once");
    let instances = instances(&notify::Error::io(std::io::Error::from_raw_os_error(libc::EMFILE)));
    assert!(instances.contains("fs.inotify.max_user_instances"), "{instances}");
}
