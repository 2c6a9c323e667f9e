//! A disk that does not answer: what waits for it has a bound, and beyond that is refused.

use super::Folder;
use crate::support::{Client, on_every_backend, until};

on_every_backend! {
    too_many_questions_are_refused
    a_server_stops_although_the_disk_does_not_answer
}

/// Names that a loop may have looked for or waiting for that, besides one.
const ROOM: usize = 1023;

fn too_many_questions_are_refused(backend: &str) {
    let folder = Folder::new(&[("a.dead", b"dead"), ("a.txt", b"text")]);
    let server = folder.served_slowly(backend, &["--helpers", "1", "--max-connections", "2000"]);
    let begin = |target: &str| {
        let mut client = Client::of(&server);
        client.begin(target);
        client
    };
    let mut known = Client::of(&server);
    assert_eq!(known.get("/a.txt").text(), "text");
    let (mut dead, mut same) = (begin("/a.dead"), begin("/a.dead"));
    until("the helper is busy", || server.status()["helper_jobs"] == 2);
    let mut waiting: Vec<Client> = (0..ROOM).map(|number| begin(&format!("/{number}"))).collect();
    until("the line is full", || server.status()["helper_jobs"] == 2 + ROOM);
    let answer = Client::of(&server).get("/one-more");
    assert_eq!((answer.status, answer.field("Retry-After")), (503, Some("1")), "{}", answer.text());
    assert_eq!(server.status()["helper_refusals"], 1);
    // Whoever asks for what somebody waits for already needs no place in the line.
    let mut again = begin("/7");
    assert!(!again.has_input());
    folder.write("gate", b"");
    assert_eq!((dead.answer().text(), same.answer().text()), ("dead".to_owned(), "dead".to_owned()));
    for client in waiting.iter_mut().chain([&mut again]) {
        assert_eq!(client.answer().status, 404);
    }
    assert_eq!(Client::of(&server).get("/one-more").status, 404);
}

fn a_server_stops_although_the_disk_does_not_answer(backend: &str) {
    let folder = Folder::new(&[("a.dead", b"dead")]);
    let mut server = folder.served_slowly(backend, &["--shutdown", "100ms"]);
    let mut client = Client::of(&server);
    client.begin("/a.dead");
    until("a helper is busy", || server.status()["helper_jobs"] == 1);
    assert_eq!(server.stop(), Some(0));
    server.says("helper threads did not stop in time");
    client.rest();
}
