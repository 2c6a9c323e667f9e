//! Memory that comes back: whoever was paused because `--buffer-bytes` was used up goes on, whoever gave it back.
//!
//! Two answers of seven and a half MiB do not fit into sixteen, of which some is left to others: the first is taken from the worker whole although nobody reads it, and the second
//! is not. Nobody ever reads the second before the first has given its memory back, so that only that can set it going.

use crate::support::pattern;

use super::*;

on_every_backend! {
    a_reader_that_takes_its_answer_lets_another_go_on
    a_reader_that_leaves_lets_another_go_on
    requests_that_are_served_let_an_answer_go_on
    those_who_wait_for_memory_are_served_in_any_order
}

const MEMORY: usize = 16;
const ANSWER: usize = 7680 << 10;

/// Readers with small receive buffers on the same loop, or on two.
struct Readers {
    first: Client,
    second: Client,
}

impl Scene {
    /// Connections that have been used once: which loop they belong to shows in the request ids, which count up in each.
    fn readers(&self, on_one_loop: bool) -> Readers {
        let crowd = Crowd::enter(&self.server, 16, Habit::asking(|_| get("/fast")));
        crowd.until("all are answered", |places| places.good);
        let mut clients: Vec<(u64, Client)> = crowd
            .take(0..16)
            .into_iter()
            .map(|mut client| {
                let answer = client.answer();
                (u64::from_str_radix(answer.field("x-request-id").unwrap(), 16).unwrap(), client)
            })
            .collect();
        let (id, first) = clients.remove(0);
        let same = |other: u64| other.abs_diff(id) < 1 << 20;
        let found = clients.iter().position(|(other, _)| same(*other) == on_one_loop);
        Readers { first, second: clients.swap_remove(found.expect("sixteen connections are not all on one loop")).1 }
    }

    /// The first answer is taken from the worker whole, and the second as far as there is memory.
    fn fill_up(&self, readers: &mut Readers) {
        readers.first.begin(&format!("/large/{ANSWER}"));
        until("the first answer is taken whole", || self.worker.tally().large_done == 1);
        readers.second.begin(&format!("/large/{ANSWER}"));
        self.until_paused(ANSWER);
        assert_eq!(self.worker.tally().large_done, 1, "the second answer fits beside the first");
    }

    /// Waits until no more of the answers is taken, `before` having been taken by others. Should it only look so for a moment, the
    /// case is easier than it is meant to be.
    fn until_paused(&self, before: usize) {
        let (mut last, mut looks) = (0, 0);
        until("the answer stands still", || {
            let taken = self.worker.tally().large_taken;
            looks = if taken == last && taken > before { looks + 1 } else { 0 };
            last = taken;
            looks > 100
        });
    }

    fn second_is_taken(&self) {
        until("the second answer is taken, for there is memory again", || self.worker.tally().large_done == 2);
        self.memory_keeps_its_bound();
    }
}

fn a_reader_that_takes_its_answer_lets_another_go_on(backend: &str) {
    let body = pattern(ANSWER);
    for (loops, on_one_loop) in [("1", true), ("2", true), ("2", false)] {
        let scene = Scene::with(backend, MEMORY, &["--loops", loops]);
        let mut readers = scene.readers(on_one_loop);
        scene.fill_up(&mut readers);
        assert!(readers.first.answer().body == body);
        scene.second_is_taken();
        assert!(readers.second.answer().body == body);
        readers.first.expect_alive();
        readers.second.expect_alive();
    }
}

fn a_reader_that_leaves_lets_another_go_on(backend: &str) {
    let body = pattern(ANSWER);
    for (loops, on_one_loop) in [("1", true), ("2", true), ("2", false)] {
        let scene = Scene::with(backend, MEMORY, &["--loops", loops]);
        let mut readers = scene.readers(on_one_loop);
        scene.fill_up(&mut readers);
        drop(readers.first);
        scene.second_is_taken();
        assert!(readers.second.answer().body == body);
        readers.second.expect_alive();
    }
}

/// What is given back are the bodies of requests that have waited for a worker, and not an answer.
fn requests_that_are_served_let_an_answer_go_on(backend: &str) {
    const BODY: usize = 1 << 20;
    const POSTS: usize = 8;
    let scene = Scene::with(backend, MEMORY, &["--concurrency", "2", "--queue-timeout-ms", "300000"]);
    let mut reader = scene.readers(false).first;
    // Both places are taken, and all others wait in this order: for the reader, and then with a MiB each.
    let both = Crowd::enter(&scene.server, 2, Habit::asking(|index| get(&format!("/hold/{index}"))));
    until("the worker has two requests", || scene.worker.tally().held == 2);
    reader.begin(&format!("/large/{ANSWER}"));
    until("the reader waits", || scene.server.status()["queue"]["depth"] == 1);
    let posts = Crowd::enter(
        &scene.server,
        POSTS,
        Habit::sending(|_| format!("POST /fast HTTP/1.1\r\nHost: a\r\nContent-Length: {BODY}\r\n\r\n"), BODY),
    );
    until("all wait", || scene.server.status()["queue"]["depth"] == 1 + POSTS);
    scene.worker.release(0..1);
    scene.until_paused(0);
    assert_eq!(scene.worker.tally().large_done, 0, "the answer fits beside the requests");
    // The other place serves them all.
    scene.worker.release(1..2);
    posts.until("all are answered", |places| places.good);
    until("the answer is taken whole", || scene.worker.tally().large_done == 1);
    assert!(reader.answer().body == pattern(ANSWER));
    scene.memory_keeps_its_bound();
    both.leave();
}

/// None of them can be taken whole before another is gone, and they are read against the order in which they have come.
fn those_who_wait_for_memory_are_served_in_any_order(backend: &str) {
    let body = pattern(ANSWER);
    let scene = Scene::with(backend, MEMORY, &[]);
    let crowd = Crowd::enter(&scene.server, 8, Habit::asking(|_| get(&format!("/large/{ANSWER}"))));
    crowd.until("all have the beginnings of their answers", |places| places.good);
    scene.others_notice_nothing();
    for mut reader in crowd.take(0..8).into_iter().rev() {
        assert!(reader.answer().body == body, "an answer is not what was sent");
        reader.expect_alive();
    }
    assert_eq!(scene.worker.tally().large_done, 8);
    scene.memory_keeps_its_bound();
}
