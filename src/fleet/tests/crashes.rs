//! Crash loops, workers that end by themselves, and what brings an app back that has failed.

use super::*;

#[test]
fn a_crash_loop_has_its_schedule_and_is_given_up_and_a_restart_brings_it_back() {
    let mut scene = Scene::new(rule(), 1);
    while let [name] = scene.starting()[..] {
        scene.exit(name, false);
        scene.pass(SECOND * 8);
    }
    assert_eq!(scene.paper.starts.len(), 5, "no storm");
    assert!(scene.paper.failed && scene.fleet.state() == AppState::Failed);
    assert!(scene.paper.told.contains(&Event::AppFailed));
    let due = scene.fleet.due().unwrap() - scene.now;
    assert!(due > SECOND * 20, "it rests, until it is tried again: {due:?}");
    scene.restart();
    assert!(!scene.paper.failed, "requests wait for it");
    scene.ready_all();
    scene.pass(TRIAL);
    assert_eq!(scene.fleet.state(), AppState::Running);
    assert_eq!(scene.ended_rolls(), [RollEnd::Done]);
    assert_eq!(scene.serving(), [(1, 2)]);
}

#[test]
fn a_failed_app_that_is_restarted_in_vain_fails_again() {
    let mut scene = Scene::new(rule(), 1);
    while let [name] = scene.starting()[..] {
        scene.exit(name, false);
        scene.pass(SECOND * 8);
    }
    scene.restart();
    let name = scene.starting()[0];
    scene.exit(name, false);
    assert!(matches!(&scene.ended_rolls()[..], [RollEnd::Aborted { .. }]));
    for _ in 0..5 {
        scene.pass(SECOND * 8);
        scene.starting().into_iter().for_each(|name| {
            scene.exit(name, false);
        });
    }
    assert_eq!(scene.fleet.state(), AppState::Failed);
    assert!(scene.paper.failed);
}

#[test]
fn the_delays_between_restarts_are_the_rule_s() {
    let mut scene = Scene::new(rule(), 1);
    let mut seen = Vec::new();
    for _ in 0..4 {
        let name = scene.starting()[0];
        scene.exit(name, false);
        let before = scene.now;
        while scene.starting().is_empty() {
            let due = scene.fleet.due().expect("a start is due");
            scene.pass(due - scene.now);
        }
        seen.push((scene.now - before).as_millis());
    }
    for (delay, plain) in seen.iter().zip([0u128, 1000, 2000, 4000]) {
        assert!((plain..=plain * 5 / 4).contains(delay), "{seen:?}");
    }
}

#[test]
fn workers_that_leave_without_an_answer_are_not_started_without_end() {
    let mut scene = Scene::running(rule(), 1);
    for _ in 0..5 {
        let leaver = scene.fleet.members()[0].name;
        scene.fleet.leaving(leaver, scene.now, &mut scene.paper);
        scene.tick();
        assert_eq!((scene.serving().len(), scene.starting().len()), (0, 0));
        scene.let_the_old_go_unanswered();
        scene.pass(SECOND * 10);
        scene.ready_all();
    }
    assert!(scene.paper.failed && scene.fleet.members().is_empty());
}

#[test]
fn workers_that_leave_with_code_0_before_they_have_served_come_back_ever_later_and_are_not_given_up() {
    let mut scene = Scene::running(rule(), 1);
    for _ in 0..20 {
        let leaver = scene.fleet.members()[0].name;
        scene.fleet.leaving(leaver, scene.now, &mut scene.paper);
        scene.tick();
        assert_eq!((scene.serving().len(), scene.starting().len()), (0, 0));
        scene.exit_cleanly(leaver, false);
        while scene.starting().is_empty() {
            scene.pass(SECOND);
        }
        scene.ready_all();
    }
    assert!(!scene.paper.failed && scene.serving() == [(1, 1)]);
    let early = scene.paper.starts.len();
    scene.exit_cleanly(scene.fleet.members()[0].name, false);
    scene.pass(SECOND * 29);
    assert_eq!(scene.paper.starts.len(), early);
}

#[test]
fn workers_whose_sockets_are_removed_are_replaced_at_once_however_often() {
    let mut scene = Scene::running(rule(), 2);
    for _ in 0..20 {
        let names: Vec<Name> = scene.fleet.members().iter().map(|member| member.name).collect();
        names.iter().for_each(|name| scene.fleet.displaced(*name, scene.now, &mut scene.paper));
        scene.tick();
        assert_eq!(scene.starting().len(), 2, "filled at once");
        // One of them does not even get ready before it happens again.
        let early = scene.starting()[0];
        scene.fleet.displaced(early, scene.now, &mut scene.paper);
        scene.exit(early, false);
        scene.tick();
        scene.ready_all();
        scene.let_the_old_go_unanswered();
        assert_eq!(scene.serving().len(), 2);
    }
    assert!(!scene.paper.told.iter().any(|event| matches!(event, Event::GaveUp(..))), "{:?}", scene.paper.told);
}

#[test]
fn who_was_ready_for_long_served_though_nobody_asked() {
    let mut scene = Scene::running(rule(), 2);
    for _ in 0..20 {
        scene.pass(TRIAL * 3);
        let idle = scene.fleet.members()[0].name;
        scene.exit(idle, false);
        assert_eq!(scene.starting().len(), 1, "filled at once");
        scene.ready_all();
    }
    assert!(!scene.paper.told.iter().any(|event| matches!(event, Event::GaveUp(..))), "{:?}", scene.paper.told);
    scene.pass(TRIAL);
    let idle = scene.fleet.members()[0].name;
    scene.fleet.leaving(idle, scene.now, &mut scene.paper);
    scene.tick();
    assert_eq!(scene.starting().len(), 1, "one that leaves is measured alike");
}

#[test]
fn workers_that_die_right_after_each_answer_are_started_ever_later_and_the_log_says_how_often() {
    let mut scene = Scene::new(rule(), 1);
    let end = scene.now + SECOND * 60;
    while scene.now < end {
        scene.ready_all();
        scene.pass(Duration::from_millis(20));
        if let Some(name) = scene.fleet.members().first().filter(|member| member.is_running()).map(|member| member.name)
        {
            scene.exit(name, true);
        }
    }
    assert_eq!(scene.paper.starts.len(), 7, "0, 1, 2, 4, 8 and 16 seconds apart");
    assert!(!scene.paper.failed && scene.fleet.places()[0].restarts() == 6);
    let told = scene.paper.told.iter().filter(|event| matches!(event, Event::Loops(1, 2, _))).count();
    assert_eq!(told, 1, "{:?}", scene.paper.told);
}

#[test]
fn workers_that_live_for_a_second_and_answer_come_back_at_once_unless_that_is_all_they_do() {
    let mut scene = Scene::new(rule(), 1);
    let begin = scene.now;
    for _ in 0..30 {
        scene.ready_all();
        scene.pass(SECOND);
        let name = scene.fleet.members()[0].name;
        scene.exit(name, true);
        while scene.starting().is_empty() {
            scene.pass(Duration::from_millis(100));
        }
    }
    let seconds = (scene.now - begin).as_secs();
    assert!((50..70).contains(&seconds), "half of the time nobody is started: {seconds} s");
    assert!(scene.paper.told.iter().any(|event| matches!(event, Event::Loops(1, 6, _))), "{:?}", scene.paper.told);
}

#[test]
fn an_operator_who_ends_workers_with_term_fails_no_app() {
    let mut scene = Scene::running(Rule { proven_after: SECOND * 10, ..rule() }, 2);
    for _ in 0..12 {
        let first = scene.fleet.members()[0].name;
        scene.exit_cleanly(first, false);
        scene.pass(SECOND * 5);
        scene.ready_all();
    }
    assert!(!scene.paper.told.iter().any(|event| matches!(event, Event::GaveUp(..))), "{:?}", scene.paper.told);
    let mut scene = Scene::new(rule(), 1);
    while let [name] = scene.starting()[..] {
        scene.exit_cleanly(name, false);
        scene.pass(SECOND * 8);
    }
    assert!(scene.paper.failed, "who ends before it is ready has crashed, whatever its code");
}

/// An app that had served and whose workers all crash at their start, until it has failed; and when it did.
fn failed(workers: usize) -> (Scene, Instant) {
    let mut scene = Scene::running(rule(), workers);
    let served: Vec<Name> = scene.fleet.members().iter().map(|member| member.name).collect();
    for name in served {
        scene.exit(name, true);
    }
    while !scene.paper.failed {
        for name in scene.starting() {
            scene.exit(name, false);
        }
        scene.pass(Duration::from_millis(100));
    }
    let at = scene.now;
    (scene, at)
}

#[test]
fn a_failed_app_is_tried_again_one_worker_at_a_time_and_later_each_time() {
    let (mut scene, since) = failed(3);
    let (mut tried, mut numbers) = (Vec::new(), Vec::new());
    for _ in 0..7 {
        let due = scene.fleet.due().expect("it is tried again") - scene.now;
        scene.pass(due);
        assert_eq!(scene.starting().len(), 1, "one at a time");
        tried.push(((scene.now - since).as_secs_f32() / 10.0).round() as u64 * 10);
        assert!(scene.paper.failed, "requests are refused meanwhile");
        numbers.push(scene.fleet.members()[0].number);
        scene.exit(scene.starting()[0], false);
    }
    assert_eq!(tried, [30, 90, 210, 450, 750, 1050, 1350], "30 s, 60 s, 120 s, 240 s, and 5 min from then on");
    assert_eq!(BTreeSet::from_iter(&numbers[..3]).len(), 3, "each in turn: {numbers:?}");
    assert_eq!(numbers[..3], numbers[3..6]);
    assert_eq!(scene.paper.told.iter().filter(|event| matches!(event, Event::AppFailed)).count(), 1);
}

#[test]
fn the_first_that_answers_brings_the_others_back() {
    let (mut scene, _) = failed(3);
    scene.pass(SECOND * 30);
    let tried = scene.starting()[0];
    scene.ready(tried);
    assert!(!scene.paper.failed && scene.serving().len() == 1, "it gets requests");
    assert_eq!(scene.starting().len(), 0, "the others wait until it has shown that it serves");
    // It crashes at its first request.
    scene.exit(tried, false);
    assert!(scene.paper.failed);
    scene.pass(SECOND * 59);
    assert_eq!(scene.starting().len(), 0);
    scene.pass(SECOND);
    let tried = scene.starting()[0];
    scene.ready(tried);
    scene.paper.answered.insert(tried);
    scene.pass(TRIAL_LOOK);
    assert_eq!(scene.starting().len(), 2);
    scene.ready_all();
    assert_eq!(scene.serving(), [(1, 1), (2, 1), (3, 1)]);
    assert_eq!(scene.fleet.state(), AppState::Running);
    assert!(scene.fleet.places().iter().all(|place| !place.given_up) && scene.fleet.due().is_none());
}

#[test]
fn a_single_place_comes_back_as_well_and_so_does_one_that_answers_and_dies() {
    let mut scene = Scene::running(rule(), 2);
    let name = scene.fleet.members()[1].name;
    scene.exit(name, false);
    while !scene.fleet.places()[1].given_up {
        scene.pass(Duration::from_millis(100));
        for name in scene.starting() {
            scene.exit(name, false);
        }
    }
    assert!(!scene.paper.failed && scene.serving() == [(1, 1)]);
    scene.pass(SECOND * 30);
    let tried = scene.starting()[0];
    scene.ready(tried);
    scene.exit(tried, true);
    assert!(!scene.fleet.places()[1].given_up, "it has answered");
    scene.pass(SECOND);
    scene.ready_all();
    assert_eq!(scene.serving(), [(1, 1), (2, 1)]);
}

#[test]
fn a_try_that_cannot_be_started_or_finds_no_room_is_put_off() {
    let (mut scene, _) = failed(1);
    scene.paper.refuses = true;
    scene.pass(SECOND * 30);
    assert!(scene.starting().is_empty() && scene.paper.failed);
    scene.paper.refuses = false;
    scene.pass(SECOND * 59);
    assert!(scene.starting().is_empty());
    scene.pass(SECOND);
    scene.ready_all();
    scene.pass(TRIAL);
    assert_eq!(scene.serving(), [(1, 1)]);
}

#[test]
fn a_server_that_stops_tries_nothing_again() {
    let (mut scene, _) = failed(2);
    scene.fleet.hold_still(scene.now, &mut scene.paper);
    scene.pass(SECOND * 600);
    assert!(scene.starting().is_empty() && scene.fleet.due().is_none());
}

#[test]
fn what_a_worker_had_said_before_its_end_counts_as_if_it_had_been_heard_in_time() {
    // It has served and leaves.
    let mut scene = Scene::running(rule(), 1);
    let leaver = scene.fleet.members()[0].name;
    scene.paper.answered.insert(leaver);
    scene.fleet.last_words(leaver, &[Word::Leaves], scene.now, &mut scene.paper);
    assert_eq!(scene.exit(leaver, true), Some(Ending::Leaving));
    assert_eq!(scene.starting().len(), 1, "filled at once");

    // It is ready and ends: no crash, though again and again.
    for _ in 0..20 {
        while scene.starting().is_empty() {
            scene.pass(SECOND);
        }
        let name = scene.starting()[0];
        scene.fleet.last_words(name, &[Word::Ready, Word::Leaves], scene.now, &mut scene.paper);
        assert!(scene.fleet.member(name).is_some_and(|member| member.ready_at.is_some()));
        assert_eq!(scene.exit_cleanly(name, false), None, "it has not served");
    }
    assert!(!scene.paper.failed && !scene.paper.told.iter().any(|event| matches!(event, Event::GaveUp(..))));

    // It is stuck.
    while scene.starting().is_empty() {
        scene.pass(SECOND);
    }
    let name = scene.starting()[0];
    let stuck = Ending::Watchdog(SECOND);
    scene.fleet.last_words(name, &[Word::Stuck(stuck)], scene.now, &mut scene.paper);
    assert_eq!(scene.exit(name, false), Some(stuck));
}

#[test]
fn only_an_end_that_is_the_workers_own_fault_is_a_crash() {
    for (ending, crashes) in
        [(Ending::Watchdog(SECOND), true), (Ending::Deadline(SECOND), true), (Ending::Displaced, false)]
    {
        let mut scene = Scene::new(rule(), 1);
        for _ in 0..20 {
            // Longer than the longest pause before a start.
            (0..40).for_each(|_| scene.pass(if scene.starting().is_empty() { SECOND } else { Duration::ZERO }));
            let Some(name) = scene.starting().first().copied() else { break };
            scene.fleet.last_words(name, &[Word::Stuck(ending)], scene.now, &mut scene.paper);
            assert_eq!(scene.exit(name, false), Some(ending));
        }
        assert_eq!(scene.paper.failed, crashes, "{ending:?}");
    }
}

#[test]
fn whoever_leaves_and_has_served_by_its_end_left_by_itself() {
    let mut scene = Scene::running(rule(), 1);
    let leaver = scene.fleet.members()[0].name;
    scene.fleet.leaving(leaver, scene.now, &mut scene.paper);
    scene.tick();
    assert_eq!(scene.starting(), [], "nothing is known of an answer yet");
    scene.paper.answered.insert(leaver);
    scene.fleet.last_words(leaver, &[], scene.now, &mut scene.paper);
    assert_eq!(scene.exit(leaver, true), Some(Ending::Leaving));
    assert_eq!(scene.starting().len(), 1);
    let other = scene.starting()[0];
    scene.ready(other);
    scene.fleet.last_words(other, &[], scene.now, &mut scene.paper);
    assert_eq!(scene.exit(other, true), None, "this one has said nothing");
}

#[test]
fn nobody_makes_room_for_a_replacement_that_said_that_it_is_ready_and_has_ended() {
    let mut scene = Scene::running(rule(), 1);
    let old = scene.fleet.members()[0].name;
    scene.fleet.replace(old, Ending::Memory(7));
    scene.tick();
    let new = scene.starting()[0];
    scene.fleet.last_words(new, &[Word::Ready], scene.now, &mut scene.paper);
    scene.exit_cleanly(new, false);
    assert!(scene.paper.alive[&old] && scene.paper.drained.is_empty());
    assert_eq!(scene.serving(), [(1, 1)]);
}
