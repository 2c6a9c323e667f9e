//! Readers that are slow, and such that are silent: the write timeout tells the one from the other by what they acknowledge.

use std::time::Duration;

use crate::support::pattern;

use super::*;

on_every_backend! {
    a_reader_that_acknowledges_little_by_little_is_not_cut
    readers_that_take_nothing_are_cut_and_all_else_goes_on
}

const LARGE: usize = 400_000;

/// It takes 8 KiB a second: its 4 KiB of window open anew every half a second or so, and the kernel's send buffer, of which a third
/// has to become free, takes nothing for three seconds and more. (With 1 KiB a second the window itself stays shut for six seconds,
/// in which nobody could tell it from one that is silent.)
fn a_reader_that_acknowledges_little_by_little_is_not_cut(backend: &str) {
    let scene = Scene::open(backend, &["--write-timeout", "2s"]);
    let readers = Crowd::enter(&scene.server, 2, Habit::asking(|_| get(&format!("/large/{LARGE}"))));
    readers.until("both have the beginning of their answers", |places| places.good);
    let mut slow = readers.take(0..1).remove(0);
    let head = slow.head().unwrap();
    assert!(head.contains("Content-Length: 400000\r\n"), "{head}");
    let body = pattern(LARGE);
    let mut got = Vec::new();
    // Twelve seconds: six write timeouts, and three fillings of the kernel's buffer.
    while got.len() < 96 << 10 {
        got.extend(slow.take(1024));
        std::thread::sleep(Duration::from_millis(125));
    }
    // The other one has taken nothing meanwhile.
    assert_eq!(readers.ended(), [1], "the silent one should be cut");
    scene.until_left(1);
    got.extend(slow.take(LARGE - got.len()));
    assert!(got == body, "the slow reader got other bytes");
    slow.expect_alive();
    readers.leave();
}

fn readers_that_take_nothing_are_cut_and_all_else_goes_on(backend: &str) {
    let scene = Scene::open(backend, &["--write-timeout", "2s"]);
    let crowd = Crowd::enter(&scene.server, peers() / 8, Habit::asking(|_| get(&format!("/large/{LARGE}"))));
    crowd.until("every reader has the beginning of its answer", |places| places.good);
    scene.others_notice_nothing();
    scene.until_left(0);
    until("their answers are over for the worker, too", || scene.worker.tally().running == 0);
    crowd.leave();
    scene.all_is_given_back();
}
