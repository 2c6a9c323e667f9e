//! Advice about commands that start a pool of processes of their own: each worker would then be a pool, and have one request at a time.
//!
//! Known by the command line, or for node:cluster, whose size is in nobody's command line, by the children of a ready worker.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

/// Programs that serve with as many processes as they are told to, and the options that tell them.
const POOLS: &[(&str, &[&str])] = &[
    ("gunicorn", &["-w", "--workers"]),
    ("uvicorn", &["--workers"]),
    ("hypercorn", &["-w", "--workers"]),
    ("granian", &["--workers"]),
    ("puma", &["-w", "--workers"]),
];
/// Programs that start and watch processes themselves, whatever they are told.
const MANAGERS: &[&str] = &["pm2", "pm2-runtime"];
/// What node:cluster sets in the environment of its processes.
const CLUSTER_MARK: &[u8] = b"NODE_UNIQUE_ID=";
/// Processes that are looked at below a worker, at most.
const MOST_PROCESSES: usize = 64;
/// Bytes of a process's environment that are looked at.
const MOST_ENVIRONMENT: u64 = 256 * 1024;

/// The line about a command, if it starts more processes than the worker is given requests at a time.
pub fn about(command: &[OsString], concurrency: u32) -> Option<String> {
    // The words of a shell's script count, and so does what stands behind `bundle exec` or `python -m`.
    let words: Vec<&str> = command.iter().filter_map(|word| word.to_str()).flat_map(str::split_whitespace).collect();
    let name_of = |word: &&str| Path::new(word).file_name().and_then(OsStr::to_str).unwrap_or_default().to_owned();
    let programs = words.iter().map(name_of).enumerate();
    for (at, program) in programs {
        if MANAGERS.contains(&program.as_str()) {
            return Some(format!(
                "{program} starts and watches processes of its own: name the app itself behind --, as in -- node app.js"
            ));
        }
        let Some((_, options)) = POOLS.iter().find(|(name, _)| *name == program) else { continue };
        let (option, size) = size_of_pool(&words[at + 1..], options)?;
        return (size > 1 && size > u64::from(concurrency)).then(|| line(&format!("{program} {option}"), size));
    }
    None
}

/// The line about a worker that has started processes by node:cluster; `None` for others. To be asked once it is ready. Elsewhere
/// than on Linux nothing is seen.
pub fn about_children(worker: u32, concurrency: u32) -> Option<String> {
    let mut found = vec![worker];
    let mut at = 0;
    while let Some(&process) = found.get(at).filter(|_| found.len() < MOST_PROCESSES) {
        found.extend(children_of(process));
        at += 1;
    }
    let size = found[1..].iter().filter(|child| is_of_cluster(**child)).count() as u64;
    (size > 1 && size > u64::from(concurrency)).then(|| line("node:cluster", size))
}

fn children_of(process: u32) -> Vec<u32> {
    let threads = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten().take(MOST_PROCESSES);
    let lists = threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    lists
        .flat_map(|list| list.split_whitespace().filter_map(|child| child.parse().ok()).collect::<Vec<u32>>())
        .collect()
}

fn is_of_cluster(process: u32) -> bool {
    let Ok(file) = File::open(format!("/proc/{process}/environ")) else { return false };
    let mut environment = Vec::new();
    file.take(MOST_ENVIRONMENT).read_to_end(&mut environment).is_ok()
        && environment.split(|byte| *byte == 0).any(|variable| variable.starts_with(CLUSTER_MARK))
}

fn line(what: &str, size: u64) -> String {
    format!(
        "each worker starts {size} processes of its own ({what}), and they share the requests that a worker gets at a time (-c): \
         leave that to the server, as in -w {size}"
    )
}

/// The option that tells the size of the pool, as it was written, and the size.
fn size_of_pool(arguments: &[&str], options: &[&str]) -> Option<(String, u64)> {
    for (at, argument) in arguments.iter().enumerate() {
        for option in options {
            let Some(rest) = argument.strip_prefix(option) else { continue };
            let value = match rest {
                "" => arguments.get(at + 1).copied().unwrap_or_default(),
                // `--workers=4`, and `-w4`.
                _ => rest.strip_prefix('=').or((!option.starts_with("--")).then_some(rest)).unwrap_or_default(),
            };
            if let Ok(size) = value.trim_matches(['"', '\'']).parse() {
                return Some((format!("{option} {size}"), size));
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about_words(words: &str, concurrency: u32) -> Option<String> {
        about(&words.split('|').map(OsString::from).collect::<Vec<_>>(), concurrency)
    }

    #[test]
    fn a_pool_is_known_by_the_command_line() {
        for (words, expected) in [
            ("gunicorn|-w|4|app:app", "4 processes of its own (gunicorn -w 4)"),
            ("/srv/venv/bin/gunicorn|--workers=3|app:app", "(gunicorn --workers 3)"),
            ("gunicorn|-w4|app:app", "(gunicorn -w 4)"),
            ("python3|-m|uvicorn|--workers|2|app:app", "(uvicorn --workers 2)"),
            ("sh|-c|cd app && exec gunicorn -w 4 app:app", "(gunicorn -w 4)"),
            ("bundle|exec|puma|-w|2|-t|5", "(puma -w 2)"),
            ("pm2-runtime|start|app.js", "name the app itself"),
            ("npx|pm2|start|app.js|-i|max", "name the app itself"),
        ] {
            let said = about_words(words, 1).unwrap_or_default();
            assert!(said.contains(expected), "{words}: {said}");
        }
        for words in [
            "gunicorn|-w|1|app:app",
            "gunicorn|app:app|--worker-class|gthread",
            "uvicorn|app:app|-w|4",
            "node|gunicorn.js|-w|4",
            "puma|-w|$WEB_CONCURRENCY",
            "ls|-w|4",
        ] {
            assert_eq!(about_words(words, 1), None, "{words}");
        }
        assert_eq!(about_words("gunicorn|-w|4|app:app", 4), None, "it is given as many requests as it has processes");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn node_cluster_is_known_by_its_children() {
        use std::process::{Command, Stdio};
        use std::time::{Duration, Instant};
        let pool = |script: &str| Command::new("sh").args(["-c", script]).stdin(Stdio::piped()).spawn().unwrap();
        let twice =
            |mark: &str| format!("{mark} sleep 1000 & a=$!; {mark} sleep 1000 & b=$!; read -r line; kill $a $b");
        let (mut cluster, mut other) = (pool(&twice("NODE_UNIQUE_ID=1")), pool(&twice("MARK=1")));
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut said = None;
        while said.is_none() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
            said = about_children(cluster.id(), 1);
        }
        let (many, of_others) = (about_children(cluster.id(), 2), about_children(other.id(), 1));
        for shell in [&mut cluster, &mut other] {
            drop(shell.stdin.take());
            shell.wait().unwrap();
        }
        assert!(said.unwrap().contains("2 processes of its own (node:cluster)"));
        assert_eq!((many, of_others), (None, None));
    }
}
