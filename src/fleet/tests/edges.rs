//! What happens to places, rolls and starts when several things go wrong at once.

use super::*;

/// A roll whose first place is done, and whose second has its replacement on the way.
fn proven(rule: Rule, workers: usize) -> Scene {
    let mut scene = Scene::running(rule, workers);
    scene.restart();
    scene.ready_all();
    scene.pass(TRIAL);
    scene.let_the_old_go();
    assert!(scene.fleet.roll().is_some_and(|roll| roll.done == 1), "the second place's turn has come");
    scene
}

#[test]
fn later_replacements_that_get_ready_and_crash_end_the_roll() {
    let mut scene = proven(rule(), 2);
    for _ in 0..5 {
        scene.ready_all();
        assert_eq!(scene.fleet.members().len(), 3, "the old one still has something to finish");
        let new = scene.fleet.members()[2].name;
        scene.exit(new, false);
        scene.pass(SECOND * 5);
    }
    assert!(scene.fleet.places()[1].given_up);
    assert!(matches!(&scene.ended_rolls()[..], [RollEnd::Aborted { .. }]), "{:?}", scene.paper.told);
    scene.restart();
    scene.settle();
    assert_eq!(scene.serving(), [(1, 3), (2, 3)], "the next roll brings it back");
}

#[test]
fn a_roll_whose_last_place_has_a_new_worker_before_its_turn_is_over_at_once() {
    let mut scene = proven(rule(), 3);
    let last = scene.fleet.members().iter().find(|member| member.number == 3).unwrap().name;
    scene.exit(last, true);
    scene.pass(SECOND);
    scene.ready_all();
    assert_eq!(scene.serving(), [(1, 2), (2, 2), (3, 2)]);
    assert!(scene.ended_rolls().is_empty(), "the second's old one still has something to finish");
    scene.let_the_old_go();
    assert_eq!(scene.ended_rolls(), [RollEnd::Done]);
    assert_eq!(scene.fleet.last_roll().map(|roll| (roll.done, roll.total)), Some((3, 3)));
}

#[test]
fn a_new_worker_that_was_looked_at_when_the_roll_was_proven_takes_over_when_it_is_back() {
    let mut scene = Scene::running(Rule { parallel: 2, ..rule() }, 2);
    scene.restart();
    scene.ready_all();
    let second = scene.fleet.members()[3].name;
    scene.fleet.unreachable(second, scene.now, &mut scene.paper);
    scene.pass(TRIAL);
    assert_eq!(scene.serving(), [(1, 2), (2, 1)]);
    scene.ready(second);
    scene.settle();
    assert_eq!(scene.ended_rolls(), [RollEnd::Done]);
    assert_eq!(scene.serving(), [(1, 2), (2, 2)]);
}

#[test]
fn a_system_without_processes_for_a_while_costs_no_place() {
    let mut scene = Scene::running(rule(), 2);
    scene.paper.refuses = true;
    for name in [scene.fleet.members()[0].name, scene.fleet.members()[1].name] {
        scene.exit(name, true);
    }
    scene.pass(SECOND * 600);
    let attempts = scene.paper.told.iter().filter(|event| matches!(event, Event::StartFailed(..))).count();
    assert!((20..200).contains(&attempts), "{attempts} attempts in ten minutes");
    assert!(!scene.paper.failed);
    scene.paper.refuses = false;
    for _ in 0..30 {
        scene.pass(SECOND);
        scene.ready_all();
    }
    assert_eq!(scene.serving(), [(1, 1), (2, 1)]);
}

#[test]
fn an_old_worker_that_gets_ready_late_leaves_its_replacement_alone() {
    let mut scene = Scene::new(rule(), 1);
    let old = scene.starting()[0];
    scene.restart();
    let new = scene.starting()[1];
    scene.ready(old);
    assert!(!scene.paper.terminated.contains(&new), "it is on its way");
    scene.ready(new);
    scene.pass(TRIAL);
    scene.let_the_old_go();
    assert_eq!((scene.serving(), scene.paper.starts.len()), (vec![(1, 2)], 2));
    assert_eq!(scene.ended_rolls(), [RollEnd::Done]);
}

#[test]
fn a_place_that_comes_back_does_not_wait_for_who_leaves_it() {
    let mut scene = Scene::running(rule(), 3);
    scene.fleet.scale_to(1, "test", scene.now, &mut scene.paper);
    scene.tick();
    scene.fleet.scale_to(3, "test", scene.now, &mut scene.paper);
    scene.tick();
    assert_eq!(scene.starting().len(), 2, "those that leave may take their time");
    scene.ready_all();
    assert_eq!(scene.serving().len(), 3);
    scene.let_the_old_go();
    assert_eq!((scene.serving().len(), scene.paper.starts.len()), (3, 5), "they were not lost");
}

#[test]
fn a_place_that_was_away_during_a_roll_is_rolled_once() {
    for memory in [true, false] {
        let mut scene = proven(rule(), 3);
        scene.ready_all();
        scene.fleet.scale_to(2, "test", scene.now, &mut scene.paper);
        scene.tick();
        scene.fleet.scale_to(3, "test", scene.now, &mut scene.paper);
        scene.tick();
        scene.ready_all();
        scene.paper.no_memory = !memory;
        scene.settle();
        assert_eq!(scene.ended_rolls(), [RollEnd::Done]);
        scene.paper.no_memory = true;
        let starts = scene.paper.starts.len();
        scene.pass(SECOND * 60);
        assert_eq!(scene.paper.starts.len(), starts);
        assert_eq!(scene.serving(), [(1, 2), (2, 2), (3, 2)]);
    }
}

#[test]
fn the_only_worker_that_joins_again_is_never_missing() {
    let mut scene = Scene::new(rule(), 1);
    let first = join(&mut scene, "a", Some("1"));
    while let [name] = scene.starting()[..] {
        scene.exit(name, false);
        scene.pass(SECOND * 8);
    }
    assert!(scene.fleet.places()[0].given_up && !scene.paper.failed);
    let second = join(&mut scene, "a", Some("1"));
    assert!(scene.paper.alive[&second] && !scene.paper.told.contains(&Event::AppFailed));
    assert_eq!(scene.fleet.joined().iter().map(|worker| worker.name).collect::<Vec<_>>(), [second]);
    assert!(scene.fleet.part(first, scene.now, &mut scene.paper).is_none());
    assert_eq!(scene.fleet.state(), AppState::Running);
}

#[test]
fn a_roll_ends_though_its_workers_answer_once_and_leave() {
    let mut scene = Scene::running(rule(), 1);
    scene.restart();
    for _ in 0..5 {
        for new in scene.starting() {
            scene.ready(new);
            scene.paper.answered.insert(new);
            scene.fleet.leaving(new, scene.now, &mut scene.paper);
            scene.exit(new, true);
        }
        scene.let_the_old_go();
    }
    scene.pass(SECOND * 10);
    scene.ready_all();
    assert_eq!((scene.ended_rolls(), scene.serving()), (vec![RollEnd::Done], vec![(1, 2)]));
}

#[test]
fn a_place_that_was_given_up_keeps_no_roll_waiting_for_its_worker() {
    let mut scene = Scene::running(Rule { max_unavailable: 1, ..rule() }, 2);
    let name = scene.fleet.members()[1].name;
    scene.exit(name, false);
    for _ in 0..4 {
        scene.pass(SECOND * 5);
        let name = scene.starting()[0];
        scene.exit(name, false);
    }
    assert!(scene.fleet.places()[1].given_up);
    scene.paper.no_memory = true;
    scene.restart();
    scene.settle();
    assert_eq!((scene.ended_rolls(), scene.serving()), (vec![RollEnd::Done], vec![(1, 2), (2, 2)]));
}

#[test]
fn a_limit_that_was_reached_outlives_an_aborted_roll() {
    for before in [true, false] {
        let mut scene = Scene::running(rule(), 1);
        let old = scene.fleet.members()[0].name;
        if before {
            scene.fleet.replace(old, Ending::Requests(10));
        }
        scene.restart();
        scene.fleet.replace(old, Ending::Requests(10));
        let new = scene.starting()[0];
        scene.exit(new, false);
        assert!(matches!(&scene.ended_rolls()[..], [RollEnd::Aborted { .. }]));
        scene.settle();
        assert_eq!(scene.fleet.places()[0].last_exit.as_deref(), Some("recycle: 10 requests"));
        assert_eq!(scene.serving(), [(1, 1)]);
    }
}

#[test]
fn another_rule_holds_for_the_places_that_there_are_and_the_workers_that_live() {
    let mut scene = Scene::running(Rule { lifetime: None, ..rule() }, 2);
    assert_eq!(scene.fleet.due(), None);
    let lifetime = Some(SECOND * 100);
    scene.fleet.set_rule(Rule { lifetime, ..rule() });
    scene.pass(SECOND * 101);
    assert_eq!(scene.starting().len(), 1, "they are replaced, one after the other");
    scene.ready_all();
    scene.settle();
    scene.fleet.set_rule(Rule { restart: RestartRule { crashes: 2, ..rule().restart }, lifetime: None, ..rule() });
    scene.fleet.scale_to(3, "test", scene.now, &mut scene.paper);
    scene.tick();
    for _ in 0..2 {
        let name = *scene.starting().last().expect("the new place is filled");
        scene.exit(name, false);
        scene.pass(SECOND * 8);
    }
    assert!(scene.paper.told.iter().any(|event| matches!(event, Event::GaveUp(3, _))), "{:?}", scene.paper.told);
}

#[test]
fn what_a_roll_brings_is_known_when_it_is_asked_for() {
    let mut scene = Scene::running(rule(), 1);
    let first = scene.restart();
    assert_eq!(scene.fleet.generation_of(first), 2);
    let next = scene.fleet.restart(scene.now, &mut scene.paper);
    assert!(next != first && scene.fleet.generation_of(next) == 3, "it waits for its turn");
    scene.ready_all();
    scene.pass(TRIAL);
    scene.let_the_old_go();
    scene.settle();
    let generation = scene.fleet.generation();
    assert_eq!(scene.fleet.last_roll().map(|report| report.generation), Some(generation));
}

#[test]
fn where_workers_are_asked_for_their_health_a_roll_waits_until_each_new_one_has_passed() {
    let mut scene = Scene::running(Rule { checked: true, ..rule() }, 2);
    scene.restart();
    for place in 1..=2 {
        let new = scene.starting()[0];
        scene.ready(new);
        scene.paper.answered.insert(new);
        scene.pass(TRIAL * 2);
        assert!(scene.serving().contains(&(place, 1)), "what it answers and how long it lives does not count");
        scene.fleet.checked(new, Ok(()), scene.now, &mut scene.paper);
        scene.tick();
        assert!(!scene.serving().contains(&(place, 1)));
        scene.let_the_old_go();
    }
    assert_eq!((scene.serving(), scene.ended_rolls()), (vec![(1, 2), (2, 2)], vec![RollEnd::Done]));
}

#[test]
fn a_new_worker_that_fails_its_health_checks_aborts_the_roll_at_whatever_place() {
    for (passed, left) in [(0, [(1, 1), (2, 1)]), (1, [(1, 2), (2, 1)])] {
        let mut scene = Scene::running(Rule { checked: true, ..rule() }, 2);
        scene.restart();
        for _ in 0..passed {
            let new = scene.starting()[0];
            scene.ready(new);
            scene.fleet.checked(new, Ok(()), scene.now, &mut scene.paper);
            scene.tick();
            scene.let_the_old_go();
        }
        let new = scene.starting()[0];
        scene.ready(new);
        scene.fleet.checked(new, Err("500"), scene.now, &mut scene.paper);
        scene.tick();
        scene.let_the_old_go();
        let aborted = RollEnd::Aborted { reason: "500".to_owned(), last_lines: String::new() };
        assert_eq!((scene.serving(), scene.ended_rolls()), (left.to_vec(), vec![aborted]));
    }
}
