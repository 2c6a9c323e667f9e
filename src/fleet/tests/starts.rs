//! How many workers start at once and how long they are waited for, and when limits of their own replace them.

use super::*;

#[test]
fn limits_replace_start_first_one_at_a_time() {
    let mut scene = Scene::running(rule(), 4);
    let names: Vec<Name> = scene.fleet.members().iter().map(|member| member.name).collect();
    for name in names {
        scene.fleet.replace(name, Ending::Memory(9 << 20));
    }
    scene.tick();
    assert_eq!((scene.starting().len(), scene.serving().len()), (1, 4));
    scene.settle();
    assert_eq!(scene.serving(), [(1, 1), (2, 1), (3, 1), (4, 1)]);
    assert_eq!(scene.paper.starts.len(), 8);
    assert!(scene.fleet.places().iter().all(|place| place.last_exit.as_deref() == Some("recycle: memory 9 MiB")));
}

#[test]
fn two_recycles_lie_a_start_up_apart() {
    let mut scene = Scene::running(rule(), 8);
    let names: Vec<Name> = scene.fleet.members().iter().map(|member| member.name).collect();
    for name in names {
        scene.fleet.replace(name, Ending::Requests(10));
    }
    scene.tick();
    for recycled in 1..=8 {
        assert_eq!((scene.starting().len(), scene.paper.starts.len()), (1, 8 + recycled), "one at a time");
        scene.pass(SECOND * 3);
        scene.ready_all();
        scene.let_the_old_go();
        scene.pass(SECOND * 3 - Duration::from_millis(1));
        assert_eq!(scene.paper.starts.len(), 8 + recycled, "the machine rests for as long as that start took");
        scene.pass(Duration::from_millis(1));
    }
    assert_eq!((scene.starting().len(), scene.serving().len()), (0, 8));
}

/// Whoever has a low limit is due again as soon as it serves.
#[test]
fn who_is_due_for_longest_is_recycled_first() {
    let mut scene = Scene::running(rule(), 3);
    let first: Vec<Name> = scene.fleet.members().iter().map(|member| member.name).collect();
    for _ in 0..5 {
        let names: Vec<Name> = scene.fleet.members().iter().map(|member| member.name).collect();
        names.iter().for_each(|name| scene.fleet.replace(*name, Ending::Requests(5)));
        scene.tick();
        scene.pass(SECOND * 3);
        scene.ready_all();
        scene.let_the_old_go();
        scene.pass(SECOND * 2);
        let names: Vec<Name> = scene.fleet.members().iter().map(|member| member.name).collect();
        names.iter().for_each(|name| scene.fleet.replace(*name, Ending::Requests(5)));
        scene.pass(SECOND);
    }
    let left: Vec<Name> = scene.fleet.members().iter().map(|member| member.name).collect();
    assert!(first.iter().all(|name| !left.contains(name)), "{left:?}");
}

#[test]
fn a_limit_of_requests_may_leave_a_worker_time_to_get_warm_and_other_limits_do_not() {
    let mut scene = Scene::running(Rule { requests_not_before: SECOND * 600, ..rule() }, 2);
    let (busy, heavy) = (scene.fleet.members()[0].name, scene.fleet.members()[1].name);
    scene.pass(SECOND);
    scene.fleet.replace(busy, Ending::Requests(10_000));
    scene.fleet.replace(heavy, Ending::Requests(10_000));
    scene.fleet.replace(heavy, Ending::Memory(9 << 20));
    scene.tick();
    scene.settle();
    assert_eq!(scene.fleet.places()[1].last_exit.as_deref(), Some("recycle: memory 9 MiB"));
    scene.pass(SECOND * 590);
    assert_eq!(scene.paper.starts.len(), 3, "the busy one is younger than ten minutes");
    scene.pass(SECOND * 10);
    scene.settle();
    assert_eq!(scene.fleet.places()[0].last_exit.as_deref(), Some("recycle: 10000 requests"));
    assert_eq!(scene.paper.starts.len(), 4);
}

#[test]
fn nobody_is_recycled_in_the_middle_of_a_roll() {
    let mut scene = Scene::running(rule(), 3);
    scene.restart();
    let last = scene.fleet.members()[2].name;
    for ending in [Ending::Requests(10), Ending::Lifetime(SECOND), Ending::Memory(9 << 20), Ending::Reloads(3)] {
        scene.fleet.replace(last, ending);
    }
    scene.pass(SECOND);
    assert_eq!(scene.starting().len(), 1, "only the first place has its turn");
    scene.ready_all();
    scene.pass(TRIAL);
    let new =
        scene.serving().iter().position(|worker| *worker == (1, 2)).map(|_| scene.fleet.members()[3].name).unwrap();
    scene.fleet.replace(new, Ending::Requests(10));
    scene.let_the_old_go();
    scene.pass(SECOND);
    assert_eq!(scene.starting().len(), 1, "the roll goes on, and who is new waits for its end");
    assert_eq!(scene.fleet.member(scene.starting()[0]).unwrap().number, 2);
    scene.settle();
    assert_eq!(scene.ended_rolls(), [RollEnd::Done]);
    assert_eq!(scene.paper.starts.len(), 7, "three for the roll, and one for the limit that was reached meanwhile");
    assert_eq!(scene.fleet.places()[2].last_exit.as_deref(), Some("deploy"));
}

#[test]
fn a_recycled_worker_s_replacement_that_never_gets_ready_is_tried_again_one_at_a_time() {
    let mut scene = Scene::running(rule(), 1);
    scene.fleet.replace(scene.fleet.members()[0].name, Ending::Memory(9 << 20));
    scene.tick();
    // The first failure is followed by another try at once, the next ones by the rule's delays, each after the exit.
    for (tries, delay) in [(1, Duration::ZERO), (2, SECOND), (3, SECOND * 2)] {
        let new = scene.starting()[0];
        scene.pass(SECOND * 15 + TERM_GRACE);
        assert_eq!((scene.paper.starts.len(), scene.starting()), (1 + tries, Vec::new()), "it has not gone yet");
        scene.exit(new, false);
        scene.pass(delay + delay * RESTART_JITTER_PERCENT / 100);
        assert_eq!((scene.starting().len(), scene.serving()), (1, vec![(1, 1)]));
    }
    scene.settle();
    assert_eq!(scene.fleet.places()[0].last_exit.as_deref(), Some("recycle: memory 9 MiB"));
}

#[test]
fn a_lifetime_replaces_and_so_do_too_many_reloads() {
    let mut scene = Scene::running(Rule { lifetime: Some(SECOND * 60), reloads: 3, ..rule() }, 1);
    let first = scene.fleet.members()[0].name;
    (0..3).for_each(|_| scene.fleet.reloaded(first));
    scene.tick();
    scene.settle();
    assert_eq!(scene.fleet.places()[0].last_exit.as_deref(), Some("recycle: 3 reloads"));
    let second = scene.fleet.members()[0].name;
    scene.pass(SECOND * 60);
    scene.settle();
    assert!(scene.fleet.members()[0].name > second);
    assert_eq!(scene.fleet.places()[0].last_exit.as_deref(), Some("recycle: lived 60 s"));
}

#[test]
fn as_many_start_at_once_as_there_are_cores_and_who_waits_longest_is_next() {
    let mut scene = Scene::new(Rule { start_parallel: 2, ..rule() }, 100);
    let mut most = 0;
    while scene.serving().len() < 100 {
        most = most.max(scene.starting().len());
        let first = scene.starting()[0];
        scene.pass(SECOND * 4);
        scene.ready(first);
    }
    assert_eq!((most, scene.paper.starts.len()), (2, 100));
    let numbers: Vec<u32> = scene.paper.starts.iter().map(|start| start.number).collect();
    assert_eq!(numbers, (1..=100).collect::<Vec<u32>>());
    // After all have died, who died first comes first; one that crashes while it starts goes to the end of the line.
    let names: Vec<Name> = scene.fleet.members().iter().map(|member| member.name).collect();
    for name in names.iter().rev() {
        scene.now += Duration::from_millis(1);
        scene.exit(*name, true);
    }
    let second = scene.starting()[1];
    scene.exit(second, false);
    scene.pass(SECOND * 2);
    scene.ready_all();
    let numbers: Vec<u32> = scene.paper.starts[100..104].iter().map(|start| start.number).collect();
    assert_eq!(numbers, [100, 99, 98, 97]);
}

#[test]
fn a_roll_and_recycling_keep_to_the_starts_at_once_as_well() {
    let mut scene = Scene::running(Rule { start_parallel: 2, parallel: 8, ..rule() }, 8);
    scene.restart();
    assert_eq!(scene.starting().len(), 2);
    scene.settle();
    assert_eq!(scene.ended_rolls(), [RollEnd::Done]);
    assert!(scene.serving().iter().all(|(_, generation)| *generation == 2));
}

#[test]
fn a_worker_that_burns_cpu_gets_more_time_up_to_four_times() {
    let mut scene = Scene::new(Rule { start_parallel: 3, ..rule() }, 3);
    let [busy, slow, idle] = scene.starting()[..] else { panic!("three start") };
    scene.paper.burned.insert(idle, Duration::from_millis(700));
    for second in 1..=59 {
        scene.paper.burned.insert(busy, SECOND * second / 10);
        scene.paper.burned.insert(slow, (SECOND * second / 10).min(SECOND * 2));
        scene.pass(SECOND);
        let late = |name: Name| scene.paper.terminated.contains(&name);
        let expected = (false, second >= 23, second >= 15);
        assert_eq!((late(busy), late(slow), late(idle)), expected, "{second} s");
    }
    scene.pass(SECOND);
    assert!(scene.paper.terminated.contains(&busy), "even who burns CPU has a bound");
    assert!(scene.paper.told.contains(&Event::NotReady(idle, 2)), "{:?}", scene.paper.told);
    assert!(scene.paper.told.contains(&Event::NotReady(busy, 0)));
}
