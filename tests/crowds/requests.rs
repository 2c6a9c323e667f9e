//! Requests that wait: for a slow endpoint, for a worker that does not take their bodies, and for the rest of their own heads.

use super::worker::received;
use super::*;

on_every_backend! {
    posts_that_wait_for_a_slow_endpoint_are_not_noticed
    uploads_to_workers_that_do_not_read_are_not_noticed
    heads_that_stop_in_the_middle_are_not_noticed
}

const POST: usize = 17_000;
const UPLOAD: usize = 2 << 20;
/// Of a head of 30 KB, what comes before the stop.
const HALF: usize = 15_000;

fn posts_that_wait_for_a_slow_endpoint_are_not_noticed(backend: &str) {
    // Enough for all of them: a request that does not fit is refused, which is another matter.
    let scene = Scene::with(backend, 128, &[]);
    let crowd = scene.enter(Habit::sending(
        |index| format!("POST /hold/{index} HTTP/1.1\r\nHost: a\r\nContent-Length: {POST}\r\n\r\n"),
        POST,
    ));
    crowd.until("every request is sent", |places| places.sent);
    until("the worker has all of them", || scene.worker.tally().held == crowd.size);
    scene.others_notice_nothing();
    scene.worker.release(0..usize::MAX);
    crowd.until("all are answered", |places| places.good);
    for mut client in crowd.take(0..SPOT) {
        assert_eq!(client.answer().text(), received(POST));
        client.expect_alive();
    }
    crowd.leave();
    scene.all_is_given_back();
}

fn uploads_to_workers_that_do_not_read_are_not_noticed(backend: &str) {
    let scene = Scene::open(backend, &[]);
    let crowd = scene.enter(Habit::sending(
        |index| format!("POST /upload/{index} HTTP/1.1\r\nHost: a\r\nContent-Length: {UPLOAD}\r\n\r\n"),
        UPLOAD,
    ));
    until("the worker has the heads of all of them", || scene.worker.tally().held == crowd.size);
    scene.others_notice_nothing();
    scene.worker.release(0..SPOT);
    until("some are answered", || crowd.places().good == SPOT);
    for mut client in crowd.take(0..SPOT) {
        assert_eq!(client.answer().text(), received(UPLOAD));
        client.expect_alive();
    }
    scene.others_notice_nothing();
    crowd.leave();
    // That a client has left, whose body nobody takes, is seen when somebody takes it.
    scene.worker.release(0..usize::MAX);
    until("the worker sees that they have left", || scene.worker.tally().running == 0);
    scene.all_is_given_back();
}

fn heads_that_stop_in_the_middle_are_not_noticed(backend: &str) {
    let scene = Scene::open(backend, &["--header-timeout", "5m"]);
    let crowd = scene.enter(Habit::asking(|_| format!("GET /fast HTTP/1.1\r\nHost: a\r\n{}", cookies(HALF))));
    crowd.until("every half of a head is sent", |places| places.sent);
    scene.others_notice_nothing();
    let some = crowd.take(0..SPOT);
    crowd.leave();
    scene.until_left(SPOT);
    for mut client in some {
        client.send(format!("{}\r\n", cookies(HALF)));
        let answer = client.answer();
        assert_eq!((answer.status, answer.text().as_str()), (200, "fast"), "{}", answer.head);
        client.expect_alive();
    }
    scene.all_is_given_back();
}

/// Lines of that many bytes, a little more or less.
fn cookies(bytes: usize) -> String {
    format!("Cookie: name={}\r\n", "c".repeat(985)).repeat(bytes / 1000)
}
