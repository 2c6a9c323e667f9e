//! Connections up to their limit: idle ones make room, and never are more served at once.

use std::time::Duration;

use production_server::backends::simulated::End;

use super::*;
use crate::panics::Rig;

on_every_backend! {
    idle_connections_make_room_for_newcomers
    no_more_than_the_limit_are_served_at_once
}

fn idle_connections_make_room_for_newcomers(backend: &str) {
    let most = peers() / 2;
    let scene = Scene::open(backend, &["--max-connections", &most.to_string()]);
    // As many as stay undisturbed: above fifteen sixteenths of the limit the longest idle ones have to go.
    let crowd = Crowd::enter(&scene.server, most / 16 * 15 - FAST, Habit::reading(|_| get("/server")));
    crowd.until("all are idle", |places| places.good);
    assert!(crowd.ended().is_empty());
    // The first have come back meanwhile, and so they are not the longest idle ones.
    crowd.ask_again(0..FAST);
    let more = Crowd::enter(&scene.server, most / 8, Habit::reading(|_| get("/fast")));
    more.until("the newcomers are served", |places| places.good);
    scene.others_notice_nothing();
    assert!(super::connections(&scene.server) <= most as u64);
    let ended = crowd.ended();
    assert!(ended.len() >= FAST, "only {ended:?} have made room");
    // Each loop closes its own longest idle ones, and the loops may have got unlike numbers of them.
    let longest_idle = FAST..FAST + most / 2;
    assert!(ended.iter().all(|index| longest_idle.contains(index)), "{ended:?} are not the longest idle ones");
    assert!(more.ended().is_empty(), "newcomers made room for newcomers");
    let places = crowd.places();
    assert_eq!(places.open, crowd.size - ended.len());
    crowd.leave();
    more.leave();
    scene.all_is_given_back();
}

fn no_more_than_the_limit_are_served_at_once(backend: &str) {
    const MOST: usize = 200;
    let scene = Scene::open(backend, &["--max-connections", &MOST.to_string()]);
    let crowd = Crowd::enter(&scene.server, 5 * MOST, Habit::reading(|index| get(&format!("/hold/{index}"))));
    while crowd.places().good < crowd.size {
        // Those who have their answers are idle, and make room for those who wait at the door.
        until("the next are with the worker", || {
            let left = crowd.size - crowd.places().good;
            scene.worker.tally().held >= left.min(MOST / 16 * 15)
        });
        scene.worker.release_held();
    }
    let most = scene.worker.tally().most;
    assert!(most <= MOST, "{most} were served at once");
    crowd.leave();
    scene.all_is_given_back();
}

const ASKS: &str = "GET /server HTTP/1.1\r\nHost: a\r\n\r\n";

/// A burst of newcomers beyond the limit, none of whom has asked yet: who asked a moment ago is not closed for them, and who has been idle is.
#[test]
fn newcomers_close_nobody_who_has_just_asked() {
    const MOST: usize = 32;
    for idle in [0, MOST / 4] {
        let mut rig = Rig::with(|settings| settings.bounds.connections = MOST);
        let mut longest: Vec<_> = (0..idle).map(|_| rig.client(ASKS)).collect();
        rig.world.advance(Duration::from_secs(1));
        let busy: Vec<_> = (0..MOST / 4).map(|_| rig.client(ASKS)).collect();
        assert!(longest.iter().chain(&busy).all(|client| rig.answer(*client).ends_with("ok")));
        let ask = |rig: &mut Rig, clients: &[End]| -> Vec<String> {
            clients
                .iter()
                .for_each(|client| assert_eq!(rig.world.write(*client, ASKS.as_bytes()).unwrap(), ASKS.len()));
            rig.turns();
            clients.iter().map(|client| rig.answer(*client)).collect()
        };
        ask(&mut rig, &busy);
        let newcomers: Vec<_> = (0..MOST * 7 / 8).map(|_| rig.world.connect(&rig.place).unwrap()).collect();
        rig.turns();
        for answer in ask(&mut rig, &busy) {
            assert!(answer.ends_with("ok") && !answer.contains("Connection: close"), "{idle}: {answer}");
        }
        // Those who were let in have asked, and are idle; after a while they make room for the rest.
        let (let_in, waiting) = newcomers.split_at(newcomers.len() - MOST / 8);
        assert!(ask(&mut rig, let_in).iter().all(|answer| answer.ends_with("ok")), "{idle}");
        rig.world.advance(Duration::from_millis(300));
        rig.turns();
        assert!(ask(&mut rig, waiting).iter().all(|answer| answer.ends_with("ok")), "{idle}");
        longest.extend(busy);
        longest.extend(newcomers);
        longest.into_iter().for_each(|client| drop(rig.world.close(client)));
        rig.turns();
    }
}

/// What is said now of how long a connection may be idle holds for those who are: none is held for long, or takes a newcomer's place, for what
/// was said when it began.
#[test]
fn a_shorter_time_holds_for_who_is_idle_already() {
    const MOST: usize = 32;
    let mut rig = Rig::with(|settings| {
        settings.bounds.connections = MOST;
        settings.timeouts.idle = Duration::from_secs(60);
    });
    let idle: Vec<_> = (0..MOST).map(|_| rig.client(ASKS)).collect();
    assert!(idle.iter().all(|client| rig.answer(*client).ends_with("ok")));
    rig.configure(|settings| settings.timeouts.idle = Duration::from_secs(5));
    rig.world.advance(Duration::from_secs(1));
    let newcomers: Vec<_> = (0..MOST / 4).map(|_| rig.world.connect(&rig.place).unwrap()).collect();
    rig.turns();
    for client in &newcomers {
        assert_eq!(rig.world.write(*client, ASKS.as_bytes()).unwrap(), ASKS.len());
        rig.turns();
        assert!(rig.answer(*client).ends_with("ok"));
    }
    rig.world.advance(Duration::from_secs(6));
    rig.turns();
    assert_eq!(rig.reactor.holdings().0, 0, "who is idle leaves when it is said now");
    idle.into_iter().chain(newcomers).for_each(|client| drop(rig.world.close(client)));
    rig.turns();
}
