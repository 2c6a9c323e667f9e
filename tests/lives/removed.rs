//! What is removed under a running server: its run directory, a worker's socket, the control socket. No request fails for it.

use std::fs;
use std::path::PathBuf;

use super::*;

on_every_backend! {
    a_run_directory_that_is_removed_is_made_again_and_the_workers_start_anew,
    a_socket_that_is_removed_is_made_again_or_its_worker_replaced,
    a_worker_in_whose_socket_s_place_something_else_lies_is_replaced,
}

/// Crashes would end the app soon. A removal is noticed when a connection is opened, or at the next look: what is held meanwhile is
/// not silent for too long.
const STRICT: [&str; 8] = ["--restart-base", "10ms", "--give-up", "2/60s", "-w", "2", "--read-timeout-ms", "60000"];

/// Many who ask, so that not all find a connection to a worker that is open already.
fn many_ask(site: &Site) {
    let mut clients: Vec<Client> = (0..24).map(|_| site.server.client()).collect();
    for client in &mut clients {
        asked(client, "/pid").expect("no request fails");
    }
}

/// The socket of the first worker of a place.
fn socket(site: &Site, place: usize) -> PathBuf {
    let sockets =
        fs::read_dir(site.run()).unwrap().map(|entry| entry.unwrap().path()).find(|path| path.is_dir()).unwrap();
    let is_it = |path: &PathBuf| path.display().to_string().contains(&format!(".G1.{place}."));
    fs::read_dir(sockets).unwrap().map(|entry| entry.unwrap().path()).find(is_it).unwrap()
}

fn has_failed(site: &Site) -> bool {
    ["worker-failed", "app-failed", "worker-not-ready"].iter().any(|event| site.server.has_said(event))
}

fn a_run_directory_that_is_removed_is_made_again_and_the_workers_start_anew(backend: &str) {
    let mut site = Site::python(backend, &STRICT);
    let before = site.settled(2);
    let mut held = site.begin("/hold/free");
    let asking = Asking::begin(&site);
    fs::remove_dir_all(site.run()).unwrap();
    many_ask(&site);
    until("it is noticed", || site.server.has_said("run-directory-removed"));
    until("the control socket is back", || site.run().join("control.sock").exists());
    site.until("others serve", |app| {
        let running = app["workers"].as_array().unwrap().iter().filter(|worker| worker["state"] == "running");
        running.filter(|worker| !before.contains(&(worker["pid"].as_u64().unwrap() as u32))).count() == 2
    });
    many_ask(&site);
    site.make("free");
    assert_eq!(held.answer().status, 200, "what runs comes to its end");
    asking.end();
    for pid in before {
        until("the old ones end", || !std::path::Path::new(&format!("/proc/{pid}")).exists());
    }
    assert!(!has_failed(&site), "{:?}", site.server.lines());
    // Nobody else gets in, and nothing is left in the end.
    let second = word(&site.run(), &["--listen", "127.0.0.1:0", "--respond", "x"]);
    assert_eq!(second.0, Some(73), "{second:?}");
    let run = site.run();
    site.server.signal("TERM");
    assert_eq!(site.server.ended().code(), Some(0));
    assert!(!run.exists());
}

fn a_socket_that_is_removed_is_made_again_or_its_worker_replaced(backend: &str) {
    let site = Site::python(backend, &STRICT);
    let before = site.settled(2);
    let asking = Asking::begin(&site);
    fs::remove_file(site.run().join("control.sock")).unwrap();
    fs::remove_file(socket(&site, 1)).unwrap();
    many_ask(&site);
    until("the control socket is back", || site.run().join("control.sock").exists());
    site.until("another serves in its place", |app| {
        let pids = pids(app);
        pids.len() == 2 && pids.contains(&before[1]) && !pids.contains(&before[0])
    });
    many_ask(&site);
    asking.end();
    site.events("worker-socket-removed", 1);
    site.events("control-socket-removed", 1);
    let ended = site.events("worker-exit", 1);
    assert_eq!(ended[0]["reason"], "its socket was removed");
    assert!(!has_failed(&site));
}

fn a_worker_in_whose_socket_s_place_something_else_lies_is_replaced(backend: &str) {
    let mut site = Site::python(backend, &STRICT);
    let before = site.settled(2);
    let asking = Asking::begin(&site);
    let (first, second) = (socket(&site, 1), socket(&site, 2));
    [&first, &second].iter().for_each(|path| fs::remove_file(path).unwrap());
    fs::write(&first, "a file").unwrap();
    std::os::unix::fs::symlink("/nonexistent", &second).unwrap();
    many_ask(&site);
    site.until("others serve in their places", |app| {
        let pids = pids(app);
        pids.len() == 2 && !pids.iter().any(|pid| before.contains(pid))
    });
    asking.end();
    site.events("worker-socket-removed", 2);
    assert!(site.events("worker-exit", 2).iter().all(|exit| exit["reason"] == "its socket was removed"));
    assert!(!has_failed(&site), "{:?}", site.server.lines());
    assert_eq!(site.server.stop(), Some(0));
}
