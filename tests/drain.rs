//! What a stop meets in the middle of a loop's turn, over a simulated network: requests on their way, and workers that end as well.

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

/// Each of them is connected to, and ends before the request has left.
#[test]
fn workers_that_end_all_at_once_cost_no_request() {
    let mut rig = Rig::new();
    let services = ["a", "b", "c", "d"].map(|name| rig.worker_at(&format!("/simulated/{name}.sock")).1);
    let client = rig.client("");
    let request = "POST /app HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody";
    assert_eq!(rig.world.write(client, request.as_bytes()).unwrap(), request.len());
    let (mut ended, mut served) = (0, None);
    for _ in 0..200 {
        let (world, left) = (rig.world.clone(), ended < 3);
        let closed = std::rc::Rc::new(std::cell::Cell::new(None));
        let told = closed.clone();
        rig.reactor.backend().behind_the_events(move || {
            told.set(services.iter().find_map(|service| world.accept(*service)).inspect(|end| {
                if left {
                    world.close(*end);
                }
            }));
        });
        rig.world.advance(Duration::from_millis(1));
        rig.reactor.turn().unwrap();
        if let Some(end) = closed.get() {
            if left { ended += 1 } else { served = Some(end) }
        }
    }
    assert_eq!(ended, 3, "{:?}", rig.answer(client));
    let worker = served.expect("the last worker is asked");
    assert!(rig.answer(worker).ends_with("\r\n\r\nbody"));
    let answer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    assert_eq!(rig.world.write(worker, answer.as_bytes()).unwrap(), answer.len());
    rig.turns();
    let answer = rig.answer(client);
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("ok"), "{answer:?}");
}
