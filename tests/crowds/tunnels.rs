//! Tunnels of which one side does not read.

use crate::support::pattern;

use super::worker::received;
use super::*;

on_every_backend! {
    tunnels_whose_clients_do_not_read_are_not_noticed
    tunnels_whose_workers_do_not_read_are_not_noticed
}

/// What is sent through each.
const MUCH: usize = 1 << 20;
/// A side that does not read may take longer than the idle timeout of a minute, on a busy machine.
const PATIENT: &[&str] = &["--idle-timeout", "600s"];

fn tunnels_whose_clients_do_not_read_are_not_noticed(backend: &str) {
    let scene = Scene::open(backend, PATIENT);
    let crowd = scene.enter(Habit::asking(|_| upgrade(&format!("/pour/{MUCH}"))));
    crowd.until("every tunnel is open", |places| places.good);
    scene.others_notice_nothing();
    let bytes = pattern(MUCH);
    for mut client in crowd.take(0..SPOT) {
        assert_eq!(client.answer().status, 101);
        assert!(client.take(MUCH) == bytes, "bytes of a tunnel were lost or swapped");
    }
    scene.others_notice_nothing();
    crowd.leave();
    until("the worker sees that its tunnels are over", || scene.worker.tally().running == 0);
    scene.all_is_given_back();
}

fn tunnels_whose_workers_do_not_read_are_not_noticed(backend: &str) {
    let scene = Scene::open(backend, PATIENT);
    let crowd = scene.enter(Habit::tunnelling(|index| upgrade(&format!("/deaf/{index}/{MUCH}")), MUCH));
    crowd.until("every tunnel is open", |places| places.good);
    scene.others_notice_nothing();
    scene.worker.release(0..SPOT);
    // Taken over before that, they would send no more.
    until("they have sent all", || crowd.have_sent(0..SPOT));
    for mut client in crowd.take(0..SPOT) {
        assert_eq!(client.answer().status, 101);
        let text = received(MUCH);
        assert_eq!(client.take(text.len()), text.as_bytes());
    }
    scene.others_notice_nothing();
    crowd.leave();
    // That a client has left, whose bytes nobody takes, is seen when somebody takes them.
    scene.worker.release(0..usize::MAX);
    until("the worker sees that its tunnels are over", || scene.worker.tally().running == 0);
    scene.all_is_given_back();
}

fn upgrade(path: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
}
