//! What is no proof that a worker serves: requests that only wait for it. And what does not wait for it: places that nobody fills.

use super::*;

#[test]
fn a_new_worker_that_owes_an_answer_proves_nothing_by_its_age() {
    let mut scene = Scene::running(rule(), 2);
    scene.restart();
    let new = scene.starting()[0];
    scene.ready(new);
    scene.paper.owing.insert(new);
    scene.pass(TRIAL * 20);
    assert_eq!(scene.serving(), [(1, 1), (1, 2), (2, 1)], "the old one serves on beside it");
    // Its client has left: its age counts anew.
    scene.paper.owing.remove(&new);
    scene.pass(TRIAL - TRIAL_LOOK * 2);
    assert_eq!(scene.serving(), [(1, 1), (1, 2), (2, 1)]);
    scene.pass(TRIAL_LOOK * 3);
    assert_eq!(scene.serving(), [(1, 2), (2, 1)]);
}

#[test]
fn a_request_that_times_out_on_trial_aborts_the_roll_and_the_old_serve_on() {
    let mut scene = Scene::running(rule(), 3);
    scene.restart();
    let new = scene.starting()[0];
    scene.ready(new);
    scene.fleet.timed_out(new, "no database", scene.now, &mut scene.paper);
    scene.settle();
    let reason = "a request to the new worker has timed out".to_owned();
    assert_eq!(scene.ended_rolls(), [RollEnd::Aborted { reason, last_lines: "no database".to_owned() }]);
    assert_eq!(scene.serving(), [(1, 1), (2, 1), (3, 1)]);
    // One of a generation that is proven says nothing about it.
    scene.restart();
    let new = scene.starting()[0];
    scene.ready(new);
    scene.paper.answered.insert(new);
    scene.pass(TRIAL_LOOK);
    scene.fleet.timed_out(new, "", scene.now, &mut scene.paper);
    scene.settle();
    assert_eq!(scene.ended_rolls()[1..], [RollEnd::Done]);
}

#[test]
fn an_attempt_that_only_lets_requests_wait_brings_nothing_back() {
    let mut scene = Scene::new(rule(), 2);
    while !scene.paper.failed {
        for name in scene.starting() {
            scene.exit(name, false);
        }
        scene.pass(SECOND);
    }
    let attempts = |scene: &Scene| scene.paper.starts.len();
    let before = attempts(&scene);
    scene.pass(SECOND * 30);
    let tried = scene.starting()[0];
    scene.ready(tried);
    scene.paper.owing.insert(tried);
    scene.pass(TRIAL * 20);
    assert_eq!(attempts(&scene), before + 1, "it proves nothing as long as somebody waits");
    scene.paper.owing.remove(&tried);
    scene.fleet.timed_out(tried, "", scene.now, &mut scene.paper);
    scene.pass(TRIAL * 20);
    assert_eq!(attempts(&scene), before + 1, "nor behind a request that has timed out");
    scene.fleet.stuck(tried, Ending::Deadline(SECOND), scene.now, &mut scene.paper);
    scene.exit(tried, false);
    scene.pass(SECOND * 59);
    assert_eq!(attempts(&scene), before + 1, "and its end is another crash");
    scene.pass(SECOND * 2);
    let next = scene.starting()[0];
    scene.ready(next);
    scene.pass(TRIAL + TRIAL_LOOK);
    assert_eq!(attempts(&scene), before + 3, "nobody has asked this one for anything: the other place comes back, too");
}

#[test]
fn one_that_dies_of_its_first_request_has_not_served_however_old_it_is() {
    let mut scene = Scene::new(rule(), 1);
    for _ in 0..5 {
        while scene.starting().is_empty() {
            scene.pass(SECOND);
        }
        let name = scene.starting()[0];
        scene.ready(name);
        scene.pass(TRIAL * 5);
        scene.paper.owing.insert(name);
        scene.exit(name, false);
    }
    assert!(scene.paper.failed);
}

#[test]
fn an_empty_place_does_not_wait_for_a_replacement_that_hangs() {
    for kill_all in [false, true] {
        let mut scene = Scene::new(Rule { start_parallel: 1, ..rule() }, 4);
        (0..4).for_each(|_| scene.ready_all());
        let old: Vec<Name> = scene.fleet.members().iter().map(|member| member.name).collect();
        scene.restart();
        let hangs = scene.starting()[0];
        for name in old.iter().skip(usize::from(!kill_all)) {
            scene.exit(*name, true);
        }
        assert_eq!(scene.starting().len(), 2, "one at a time beside what hangs");
        for filled in 1..=3 {
            let name = *scene.starting().last().unwrap();
            assert!(name != hangs && scene.fleet.member(name).unwrap().generation == 1);
            scene.ready(name);
            assert_eq!(scene.starting().len(), if filled < 3 { 2 } else { 1 });
        }
        assert_eq!(scene.serving().len(), if kill_all { 3 } else { 4 });
    }
}

/// A worker whose first process has ended by somebody else's TERM, while what it has started lives.
fn forsake(scene: &mut Scene, name: Name) {
    scene.fleet.forsaken(name, scene.now, &mut scene.paper);
    scene.tick();
}

#[test]
fn what_is_left_of_a_worker_finishes_and_is_told_to_stop_while_its_place_is_filled() {
    let mut scene = Scene::running(rule(), 2);
    let name = scene.fleet.members()[0].name;
    scene.paper.answered.insert(name);
    forsake(&mut scene, name);
    assert_eq!((scene.serving(), scene.starting().len()), (vec![(2, 1)], 1));
    assert!(scene.paper.drained == [name] && !scene.paper.terminated.contains(&name), "it has requests");
    scene.pass(SECOND);
    scene.fleet.drained(name, scene.now, &mut scene.paper);
    assert!(scene.paper.terminated.contains(&name) && scene.paper.killed.is_empty());
    scene.pass(TERM_GRACE);
    assert!(scene.paper.killed.contains(&name));
    assert_eq!(scene.exit_cleanly(name, true), None, "nobody here had told it to");
    scene.ready_all();
    assert_eq!((scene.serving(), scene.paper.starts.len()), (vec![(1, 1), (2, 1)], 3));
    assert_eq!(scene.fleet.places()[0].last_exit.as_deref(), Some("exit: code 0"));
}

#[test]
fn what_has_not_served_is_judged_when_all_of_it_has_ended() {
    let mut scene = Scene::running(rule(), 1);
    let name = scene.fleet.members()[0].name;
    forsake(&mut scene, name);
    assert_eq!((scene.serving(), scene.starting()), (vec![], vec![]));
    scene.exit_cleanly(name, false);
    assert_eq!(scene.starting().len(), 1);
    // A roll does not depend on one that has gone away, whatever it has answered.
    scene.ready_all();
    scene.restart();
    let new = scene.starting()[0];
    scene.ready(new);
    scene.paper.answered.insert(new);
    scene.fleet.forsaken(new, scene.now, &mut scene.paper);
    scene.exit_cleanly(new, true);
    assert!(matches!(&scene.ended_rolls()[..], [RollEnd::Aborted { .. }]), "{:?}", scene.paper.told);
    assert_eq!(scene.serving(), [(1, 1)]);
}

#[test]
fn what_is_left_of_a_worker_has_the_time_of_the_stop_while_the_server_stops() {
    let mut scene = Scene::running(rule(), 1);
    let name = scene.fleet.members()[0].name;
    scene.paper.answered.insert(name);
    scene.fleet.hold_still(scene.now, &mut scene.paper);
    forsake(&mut scene, name);
    scene.fleet.drained(name, scene.now, &mut scene.paper);
    scene.pass(SECOND * 600);
    assert!(!scene.paper.terminated.contains(&name), "whoever stops says when");
    scene.fleet.stop(SECOND * 20, scene.now, &mut scene.paper);
    assert!(scene.paper.terminated.contains(&name));
    scene.pass(SECOND * 19);
    assert!(!scene.paper.killed.contains(&name));
    scene.pass(SECOND);
    assert!(scene.paper.killed.contains(&name));
}

#[test]
fn a_roll_s_report_says_who_serves_on() {
    let left = |scene: &Scene| scene.fleet.last_roll().unwrap().left.to_string();
    let mut scene = Scene::running(rule(), 3);
    scene.restart();
    scene.exit(scene.starting()[0], false);
    assert_eq!(left(&scene), "the old workers serve on");
    scene.restart();
    scene.ready_all();
    scene.pass(TRIAL);
    scene.let_the_old_go();
    for _ in 0..5 {
        scene.pass(SECOND * 5);
        scene.exit(scene.starting()[0], false);
    }
    assert_eq!(left(&scene), "two versions serve on: 1 new and 2 old workers");
    scene.restart();
    scene.fleet.hold_still(scene.now, &mut scene.paper);
    assert_eq!(left(&scene), "its workers answer the last requests");
    let mut scene = Scene::new(rule(), 1);
    scene.restart();
    for name in scene.starting() {
        scene.exit(name, false);
    }
    assert!(scene.fleet.last_roll().is_some_and(|report| report.left == Left::default()), "{:?}", scene.paper.told);
    assert_eq!(left(&scene), "no worker serves");
}
