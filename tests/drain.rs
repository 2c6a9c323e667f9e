//! A stop that begins in the middle of a loop's turn, over a simulated network.

use std::time::Duration;

use production_server::mailbox::Message;

use crate::panics::Rig;

const REQUEST: &str = "GET /server HTTP/1.1\r\nHost: a\r\n\r\n";

/// The loop has its events already when the request comes, and then the word to stop: the connection only looks idle.
#[test]
fn a_request_that_came_before_the_word_to_stop_is_answered() {
    let mut rig = Rig::new();
    let (asks, idle) = (rig.client(REQUEST), rig.client(REQUEST));
    for end in [asks, idle] {
        assert!(rig.answer(end).ends_with("\r\n\r\nok"));
    }
    let (world, postboxes) = (rig.world.clone(), rig.postboxes.clone());
    rig.reactor.backend().behind_the_events(move || {
        assert_eq!(world.write(asks, REQUEST.as_bytes()).unwrap(), REQUEST.len());
        postboxes.post(0, Message::Drain { deadline: world.now() + Duration::from_secs(60) });
    });
    rig.turns();
    let answer = rig.answer(asks);
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains("Connection: close\r\n"), "{answer:?}");
    assert_eq!(rig.answer(idle), "");
    assert!(!rig.world.other_is_open(idle));
    rig.world.close(asks);
    rig.turns();
    assert!(rig.reactor.is_done());
}
