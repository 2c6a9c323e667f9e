//! Answers that are not read: large ones, and streams that go on.

use crate::support::pattern;

use super::worker::{BURST, event_bytes};
use super::*;

on_every_backend! {
    slow_readers_of_large_answers_are_not_noticed
    event_streams_that_nobody_reads_are_not_noticed
}

const LARGE: usize = 400_000;

fn slow_readers_of_large_answers_are_not_noticed(backend: &str) {
    let scene = Scene::open(backend, &[]);
    let crowd = scene.enter(Habit::asking(|_| get(&format!("/large/{LARGE}"))));
    crowd.until("every reader has the beginning of its answer", |places| places.good);
    scene.others_notice_nothing();
    let body = pattern(LARGE);
    for mut reader in crowd.take(0..SPOT) {
        assert!(reader.answer().body == body, "a slow reader got another answer");
        reader.expect_alive();
    }
    scene.others_notice_nothing();
    crowd.leave();
    scene.all_is_given_back();
}

fn event_streams_that_nobody_reads_are_not_noticed(backend: &str) {
    let scene = Scene::open(backend, &["--access-log", "-"]);
    let crowd = scene.enter(Habit::asking(|index| {
        let cookie = "c".repeat(2500);
        let cookies: String = (0..4).map(|part| format!("Cookie: part{part}of{index}={cookie}\r\n")).collect();
        format!("GET /events HTTP/1.1\r\nHost: a\r\n{cookies}\r\n")
    }));
    crowd.until("every stream has begun", |places| places.good);
    assert_eq!(scene.worker.tally().streams, crowd.size);
    scene.others_notice_nothing();
    for mut listener in crowd.take(0..SPOT) {
        let head = listener.head().unwrap();
        assert!(head.contains("Content-Type: text/event-stream\r\n"), "{head}");
        // All of the burst, and what has come meanwhile.
        let mut events = Vec::new();
        while events.len() < BURST + event_bytes().len() {
            events.extend(chunk(&mut listener));
        }
        let expected = event_bytes().into_iter().cycle();
        assert!(events.iter().copied().zip(expected).all(|(got, sent)| got == sent), "a stream was garbled");
    }
    scene.others_notice_nothing();
    crowd.leave();
    until("the worker sees that its streams are over", || scene.worker.tally().streams == 0);
    scene.all_is_given_back();
}

/// One chunk of an answer without an end.
fn chunk(client: &mut Client) -> Vec<u8> {
    let size = client.line().expect("the stream goes on");
    let size = usize::from_str_radix(&size, 16).unwrap();
    let mut bytes = client.take(size + 2);
    assert_eq!(bytes.split_off(size), b"\r\n");
    bytes
}
