//! The fleet with a machine of paper and a clock of its own.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

mod edges;

/// What the machine was asked for, in words.
#[derive(Default)]
struct Paper {
    starts: Vec<Start>,
    /// Alive, by name: whether it gets requests.
    alive: BTreeMap<Name, bool>,
    told: Vec<Event>,
    terminated: BTreeSet<Name>,
    killed: BTreeSet<Name>,
    signals: Vec<(Name, i32)>,
    answered: BTreeSet<Name>,
    drained: Vec<Name>,
    failed: bool,
    no_memory: bool,
    /// CPU time used so far, by name.
    burned: BTreeMap<Name, Duration>,
    refuses: bool,
}

impl Machine for Paper {
    fn start(&mut self, start: Start) -> Started {
        if self.refuses {
            return Started::Failed("no such command".to_owned());
        }
        self.starts.push(start);
        self.alive.insert(start.name, false);
        Started::Yes
    }

    fn open(&mut self, name: Name, _now: Instant) {
        self.alive.insert(name, true);
    }

    fn shut(&mut self, name: Name, _now: Instant) {
        self.alive.insert(name, false);
    }

    fn drain(&mut self, name: Name, _now: Instant) {
        self.alive.insert(name, false);
        self.drained.push(name);
    }

    fn look(&mut self, name: Name, _now: Instant) {
        self.alive.insert(name, false);
    }

    fn terminate(&mut self, name: Name, _now: Instant) {
        self.alive.insert(name, false);
        self.terminated.insert(name);
    }

    fn signal(&mut self, name: Name, signal: i32) {
        self.signals.push((name, signal));
    }

    fn kill(&mut self, name: Name) {
        self.killed.insert(name);
    }

    fn cpu_time(&mut self, name: Name) -> Option<Duration> {
        self.burned.get(&name).copied()
    }

    fn fits_beside(&mut self, _name: Name) -> bool {
        !self.no_memory
    }

    fn has_answered(&mut self, name: Name) -> bool {
        self.answered.contains(&name)
    }

    fn coldest(&mut self, among: &[Name]) -> Option<Name> {
        among.iter().min().copied()
    }

    fn give_up(&mut self, _now: Instant) {
        self.failed = true;
    }

    fn recover(&mut self) {
        self.failed = false;
    }

    fn say(&mut self, event: Event) {
        self.told.push(event);
    }
}

/// A fleet, its machine and its time.
struct Scene {
    fleet: Fleet,
    paper: Paper,
    now: Instant,
}

const SECOND: Duration = Duration::from_secs(1);
const TRIAL: Duration = SECOND;

fn rule() -> Rule {
    Rule {
        restart: RestartRule { base: SECOND, max: SECOND * 30, crashes: 5, within: SECOND * 60, max_restarts: 10 },
        requests: 0,
        requests_not_before: Duration::ZERO,
        jitter_percent: 0,
        lifetime: None,
        reloads: 0,
        ready_timeout: SECOND * 15,
        start_parallel: 1024,
        proven_after: TRIAL,
        drain: SECOND * 30,
        parallel: 1,
        max_unavailable: 0,
        dump_signal: None,
        seed: 7,
    }
}

impl Scene {
    fn new(rule: Rule, workers: usize) -> Scene {
        let now = Instant::now();
        let mut scene = Scene { fleet: Fleet::new(rule, workers, now), paper: Paper::default(), now };
        scene.tick();
        scene
    }

    /// All workers of the start are ready.
    fn running(rule: Rule, workers: usize) -> Scene {
        let mut scene = Scene::new(rule, workers);
        scene.ready_all();
        scene
    }

    fn tick(&mut self) {
        self.fleet.tick(self.now, &mut self.paper);
        assert!(self.fleet.due().is_none_or(|due| due > self.now || self.fleet.stopping), "nothing due is left undone");
    }

    /// Lets time pass as the supervisor does: from one due moment to the next.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(due) = self.fleet.due().filter(|due| *due <= end) {
            self.now = due.max(self.now);
            self.tick();
        }
        self.now = end;
    }

    fn ready(&mut self, name: Name) {
        self.fleet.ready(name, self.now, &mut self.paper);
        self.tick();
    }

    fn ready_all(&mut self) {
        for name in self.starting() {
            self.ready(name);
        }
    }

    fn starting(&self) -> Vec<Name> {
        self.fleet.members().iter().filter(|member| member.is_starting()).map(|member| member.name).collect()
    }

    /// Who gets requests: place and generation.
    fn serving(&self) -> Vec<(u32, u32)> {
        let serves = |member: &&Member| self.paper.alive.get(&member.name) == Some(&true);
        let mut serving: Vec<_> =
            self.fleet.members().iter().filter(serves).map(|member| (member.number, member.generation)).collect();
        serving.sort_unstable();
        serving
    }

    fn exit(&mut self, name: Name, answered: bool) -> Option<Ending> {
        let exit =
            Exit { answered, clean: false, how: "exit: code 1".to_owned(), last_lines: "no database".to_owned() };
        self.end(name, &exit)
    }

    /// It ends by itself with code 0, or by another's TERM.
    fn exit_cleanly(&mut self, name: Name, answered: bool) -> Option<Ending> {
        self.end(name, &Exit { answered, clean: true, how: "exit: code 0".to_owned(), last_lines: String::new() })
    }

    fn end(&mut self, name: Name, exit: &Exit) -> Option<Ending> {
        self.paper.alive.remove(&name);
        let ending = self.fleet.exited(name, exit, self.now, &mut self.paper);
        self.tick();
        ending
    }

    /// Those that were drained have no requests, and those that were told to end do.
    fn let_the_old_go(&mut self) {
        for name in std::mem::take(&mut self.paper.drained) {
            self.fleet.drained(name, self.now, &mut self.paper);
        }
        for name in std::mem::take(&mut self.paper.terminated) {
            self.exit(name, true);
        }
    }

    /// As [`Scene::let_the_old_go`], but they have never answered.
    fn let_the_old_go_unanswered(&mut self) {
        for name in std::mem::take(&mut self.paper.drained) {
            self.fleet.drained(name, self.now, &mut self.paper);
        }
        for name in std::mem::take(&mut self.paper.terminated) {
            self.exit(name, false);
        }
    }

    /// Whatever is started gets ready, whatever is drained goes, until all rests.
    fn settle(&mut self) {
        for _ in 0..200 {
            self.ready_all();
            self.let_the_old_go();
            self.pass(TRIAL_LOOK);
        }
        self.pass(TRIAL);
        self.ready_all();
        self.let_the_old_go();
    }

    fn ended_rolls(&self) -> Vec<RollEnd> {
        let end = |event: &Event| match event {
            Event::RollEnded(report) => Some(report.end.clone()),
            _ => None,
        };
        self.paper.told.iter().filter_map(end).collect()
    }

    fn restart(&mut self) -> u64 {
        let id = self.fleet.restart(self.now, &mut self.paper);
        self.tick();
        id
    }
}

#[test]
fn a_roll_replaces_place_by_place_and_never_has_fewer_serving() {
    let mut scene = Scene::running(rule(), 3);
    scene.restart();
    assert_eq!(scene.starting().len(), 1, "one at a time");
    let mut least = 3;
    for _ in 0..400 {
        scene.ready_all();
        least = least.min(scene.serving().len());
        assert!(scene.fleet.members().len() <= 4, "never more than one beyond the wanted");
        scene.let_the_old_go();
        least = least.min(scene.serving().len());
        scene.pass(TRIAL_LOOK);
    }
    assert_eq!(least, 3);
    assert_eq!(scene.serving(), [(1, 2), (2, 2), (3, 2)]);
    assert_eq!(scene.ended_rolls(), [RollEnd::Done]);
    assert!(scene.fleet.roll().is_none());
    assert_eq!(scene.fleet.generation(), 2);
}

#[test]
fn the_first_replacement_is_on_trial_until_it_answers() {
    let mut scene = Scene::running(rule(), 2);
    scene.restart();
    let new = scene.starting()[0];
    scene.ready(new);
    assert_eq!(scene.serving(), [(1, 1), (1, 2), (2, 1)], "the old one serves on beside it");
    scene.pass(TRIAL_LOOK * 3);
    assert!(scene.paper.drained.is_empty());
    scene.paper.answered.insert(new);
    scene.pass(TRIAL_LOOK);
    assert_eq!(scene.serving(), [(1, 2), (2, 1)]);
}

#[test]
fn a_first_replacement_that_crashes_on_trial_aborts_the_roll_and_the_old_serve_on() {
    let mut scene = Scene::running(rule(), 2);
    scene.restart();
    let new = scene.starting()[0];
    scene.ready(new);
    scene.exit(new, false);
    assert_eq!(scene.serving(), [(1, 1), (2, 1)]);
    scene.settle();
    assert_eq!(scene.serving(), [(1, 1), (2, 1)]);
    let aborted = RollEnd::Aborted { reason: "exit: code 1".to_owned(), last_lines: "no database".to_owned() };
    assert_eq!(scene.ended_rolls(), [aborted]);
    assert_eq!(scene.paper.starts.len(), 3, "nothing else was tried");
    assert_eq!(scene.fleet.generation(), 1);
}

#[test]
fn a_first_replacement_that_never_gets_ready_aborts_the_roll() {
    let mut scene = Scene::running(rule(), 2);
    scene.restart();
    let new = scene.starting()[0];
    scene.pass(SECOND * 15);
    assert!(scene.paper.told.contains(&Event::NotReady(new, 0)) && scene.paper.terminated.contains(&new));
    scene.pass(TERM_GRACE);
    assert!(scene.paper.killed.contains(&new), "it ignored TERM");
    assert_eq!(scene.paper.starts.len(), 3, "no other is tried before it is gone");
    scene.exit(new, false);
    let aborted = RollEnd::Aborted { reason: "not ready in time".to_owned(), last_lines: "no database".to_owned() };
    assert_eq!(scene.ended_rolls(), [aborted]);
    assert_eq!(scene.serving(), [(1, 1), (2, 1)]);
    scene.restart();
    scene.settle();
    assert_eq!(scene.serving(), [(1, 3), (2, 3)], "the next one has a generation of its own");
}

#[test]
fn a_command_that_cannot_be_started_aborts_the_roll() {
    let mut scene = Scene::running(rule(), 2);
    scene.paper.refuses = true;
    scene.restart();
    assert!(matches!(&scene.ended_rolls()[..], [RollEnd::Aborted { reason, .. }] if reason == "no such command"));
    assert_eq!(scene.serving(), [(1, 1), (2, 1)]);
}

#[test]
fn a_later_replacement_that_crashes_is_tried_again() {
    let mut scene = Scene::running(rule(), 2);
    scene.restart();
    scene.ready_all();
    scene.pass(TRIAL);
    scene.let_the_old_go();
    let second = scene.starting()[0];
    scene.exit(second, false);
    assert_eq!(scene.serving(), [(1, 2), (2, 1)]);
    scene.settle();
    assert_eq!(scene.serving(), [(1, 2), (2, 2)]);
    assert_eq!(scene.ended_rolls(), [RollEnd::Done]);
}

#[test]
fn a_later_replacement_that_keeps_crashing_ends_the_roll_with_what_there_is() {
    let mut scene = Scene::running(rule(), 2);
    scene.restart();
    scene.ready_all();
    scene.pass(TRIAL);
    scene.let_the_old_go();
    for _ in 0..5 {
        scene.pass(SECOND * 5);
        let second = scene.starting()[0];
        scene.exit(second, false);
    }
    assert!(matches!(&scene.ended_rolls()[..], [RollEnd::Aborted { .. }]), "{:?}", scene.paper.told);
    assert_eq!(scene.serving(), [(1, 2), (2, 1)]);
}

#[test]
fn rolls_asked_for_during_a_roll_are_one_more_however_many() {
    let mut scene = Scene::running(rule(), 2);
    let first = scene.restart();
    let second = scene.restart();
    assert_eq!((scene.restart(), scene.restart()), (second, second));
    assert_ne!(first, second);
    for _ in 0..3 {
        scene.settle();
        assert!(scene.fleet.members().len() <= 3);
    }
    assert_eq!(scene.ended_rolls(), [RollEnd::Done, RollEnd::Done]);
    assert_eq!(scene.serving(), [(1, 3), (2, 3)]);
}

#[test]
fn parallel_replacements_all_wait_for_the_first_to_prove_itself() {
    let mut scene = Scene::running(Rule { parallel: 3, ..rule() }, 4);
    scene.restart();
    assert_eq!(scene.starting().len(), 3);
    scene.ready_all();
    assert_eq!(scene.serving().len(), 7, "nothing old was touched");
    scene.pass(TRIAL);
    assert_eq!(scene.serving(), [(1, 2), (2, 2), (3, 2), (4, 1)]);
    scene.settle();
    assert_eq!(scene.serving(), [(1, 2), (2, 2), (3, 2), (4, 2)]);
}

#[test]
fn parallel_replacements_are_withdrawn_when_one_fails_before_any_was_proven() {
    let mut scene = Scene::running(Rule { parallel: 3, ..rule() }, 3);
    scene.restart();
    let starting = scene.starting();
    scene.ready(starting[0]);
    scene.exit(starting[1], false);
    scene.settle();
    assert_eq!(scene.serving(), [(1, 1), (2, 1), (3, 1)]);
    assert_eq!(scene.fleet.members().len(), 3);
}

#[test]
fn a_worker_that_dies_during_a_roll_is_replaced_by_what_is_on_its_way() {
    let mut scene = Scene::running(rule(), 1);
    scene.restart();
    let old = scene.fleet.members()[0].name;
    scene.exit(old, true);
    assert_eq!(scene.paper.starts.len(), 2, "the replacement fills the place");
    scene.ready_all();
    assert_eq!(scene.serving(), [(1, 2)]);
    scene.pass(TRIAL);
    assert_eq!(scene.ended_rolls(), [RollEnd::Done]);
}

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
fn scaling_up_starts_and_scaling_down_drains_the_coldest() {
    let mut scene = Scene::running(rule(), 2);
    scene.fleet.scale_to(4, "test", scene.now, &mut scene.paper);
    scene.tick();
    scene.ready_all();
    assert_eq!(scene.serving().len(), 4);
    scene.fleet.scale_to(1, "test", scene.now, &mut scene.paper);
    scene.tick();
    assert_eq!(scene.serving(), [(4, 1)], "the one that answered last stays");
    assert!(scene.paper.killed.is_empty() && scene.paper.terminated.is_empty(), "they may finish first");
    scene.settle();
    assert_eq!(scene.fleet.members().len(), 1);
    scene.fleet.scale_to(2, "test", scene.now, &mut scene.paper);
    scene.settle();
    assert_eq!(scene.serving(), [(1, 1), (4, 1)], "the lowest free number");
}

#[test]
fn scaling_down_takes_first_what_does_not_serve() {
    let mut scene = Scene::running(rule(), 1);
    scene.fleet.scale_to(2, "test", scene.now, &mut scene.paper);
    scene.tick();
    scene.fleet.scale_to(1, "test", scene.now, &mut scene.paper);
    scene.tick();
    assert_eq!(scene.serving(), [(1, 1)]);
    scene.settle();
    assert_eq!(scene.fleet.members().len(), 1);
}

#[test]
fn scaling_during_a_roll_leaves_all_new_and_no_more_than_wanted() {
    for target in [1, 2, 5] {
        for asked_after in 0..12 {
            let mut scene = Scene::running(rule(), 3);
            scene.restart();
            for step in 0..12 {
                if step == asked_after {
                    scene.fleet.scale_to(target, "test", scene.now, &mut scene.paper);
                    scene.tick();
                }
                match step % 3 {
                    0 => scene.ready_all(),
                    1 => scene.pass(TRIAL),
                    _ => scene.let_the_old_go(),
                }
            }
            scene.settle();
            scene.settle();
            let serving = scene.serving();
            assert_eq!(serving.len(), target, "asked after {asked_after}");
            assert!(serving.iter().all(|(_, generation)| *generation == 2), "{serving:?} asked after {asked_after}");
            assert_eq!(scene.ended_rolls(), [RollEnd::Done], "asked after {asked_after}");
        }
    }
}

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
fn a_worker_that_leaves_gets_nothing_more_and_is_replaced_at_once() {
    let mut scene = Scene::running(rule(), 2);
    let leaver = scene.fleet.members()[0].name;
    scene.paper.answered.insert(leaver);
    scene.fleet.leaving(leaver, scene.now, &mut scene.paper);
    scene.fleet.leaving(leaver, scene.now, &mut scene.paper);
    scene.tick();
    assert_eq!((scene.serving(), scene.starting().len()), (vec![(2, 1)], 1));
    assert_eq!(scene.exit(leaver, true), Some(Ending::Leaving), "no crash, though its replacement is not ready");
    assert_eq!(scene.starting().len(), 1, "one place, one worker");
    scene.ready_all();
    assert_eq!(scene.serving(), [(1, 1), (2, 1)]);
    assert_eq!(scene.fleet.places()[0].last_exit.as_deref(), Some("stops by itself"));
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
fn a_stuck_worker_says_where_is_killed_and_comes_back() {
    let mut scene = Scene::running(Rule { dump_signal: Some(3), ..rule() }, 2);
    let stuck = scene.fleet.members()[0].name;
    scene.fleet.stuck(stuck, Ending::Deadline(SECOND * 30), scene.now, &mut scene.paper);
    assert_eq!(scene.paper.signals, [(stuck, 3)]);
    assert_eq!(scene.serving().len(), 1, "it gets nothing more");
    assert!(scene.paper.killed.is_empty());
    scene.pass(DUMP_GRACE);
    assert!(scene.paper.killed.contains(&stuck));
    assert_eq!(scene.exit(stuck, true), Some(Ending::Deadline(SECOND * 30)));
    assert_eq!(scene.starting().len(), 1);
    assert_eq!(scene.fleet.places()[0].last_exit.as_deref(), Some("deadline 30 s"));
}

#[test]
fn without_memory_for_both_a_roll_says_so_unless_one_may_be_missing() {
    let mut scene = Scene::running(rule(), 2);
    scene.paper.no_memory = true;
    scene.restart();
    assert!(
        matches!(&scene.ended_rolls()[..], [RollEnd::Aborted { reason, .. }] if reason.contains("--max-unavailable"))
    );
    let mut scene = Scene::running(Rule { max_unavailable: 1, ..rule() }, 2);
    scene.paper.no_memory = true;
    scene.restart();
    assert_eq!((scene.serving(), scene.starting().len()), (vec![(2, 1)], 0), "the old one goes first");
    scene.settle();
    assert_eq!(scene.serving(), [(1, 2), (2, 2)]);
}

#[test]
fn without_memory_a_recycled_worker_serves_on_and_it_is_said_once() {
    let mut scene = Scene::running(rule(), 1);
    scene.paper.no_memory = true;
    let name = scene.fleet.members()[0].name;
    scene.fleet.replace(name, Ending::Requests(10));
    scene.tick();
    scene.pass(SECOND * 60);
    assert_eq!(scene.serving(), [(1, 1)]);
    assert_eq!(scene.paper.told.iter().filter(|event| matches!(event, Event::NoMemory(1))).count(), 1);
    scene.paper.no_memory = false;
    scene.pass(MEMORY_RETRY);
    scene.settle();
    assert_ne!(scene.fleet.members()[0].name, name);
}

#[test]
fn a_drain_that_takes_too_long_is_cut() {
    let mut scene = Scene::running(rule(), 1);
    let name = scene.fleet.members()[0].name;
    scene.fleet.replace(name, Ending::Requests(10));
    scene.tick();
    scene.ready_all();
    scene.pass(SECOND * 30);
    assert!(scene.paper.told.contains(&Event::Cut(name)) && scene.paper.terminated.contains(&name));
    scene.pass(TERM_GRACE);
    assert!(scene.paper.killed.contains(&name));
}

#[test]
fn a_refused_connect_is_looked_at_and_the_worker_comes_back_or_goes() {
    let mut scene = Scene::running(rule(), 1);
    let name = scene.fleet.members()[0].name;
    scene.fleet.unreachable(name, scene.now, &mut scene.paper);
    assert!(scene.serving().is_empty());
    scene.ready(name);
    assert_eq!(scene.serving(), [(1, 1)]);
    scene.fleet.unreachable(name, scene.now, &mut scene.paper);
    scene.pass(SECOND * 15);
    assert!(scene.paper.told.contains(&Event::NotBack(name)) && scene.paper.terminated.contains(&name));
    assert_eq!(scene.exit(name, true), Some(Ending::Unreachable));
    assert_eq!(scene.starting().len(), 1);
}

#[test]
fn before_the_stop_who_crashes_is_replaced_and_nothing_else_changes() {
    let mut scene = Scene::running(rule(), 2);
    scene.restart();
    let waits = scene.restart();
    scene.fleet.hold_still(scene.now, &mut scene.paper);
    assert!(matches!(&scene.ended_rolls()[..], [RollEnd::Aborted { reason, .. }] if reason == "the server stops"));
    assert!(scene.fleet.roll().is_none() && waits == 2, "nor does the queued one begin");
    scene.settle();
    let first = scene.fleet.members()[0].name;
    scene.fleet.replace(first, Ending::Requests(10));
    scene.fleet.scale_to(5, "test", scene.now, &mut scene.paper);
    scene.pass(SECOND * 60);
    let starts = scene.paper.starts.len();
    assert_eq!((scene.serving(), scene.starting().len()), (vec![(1, 1), (2, 1)], 0));
    scene.exit(first, true);
    assert_eq!(scene.paper.starts.len(), starts + 1, "requests are still to be answered");
    scene.ready_all();
    assert_eq!(scene.serving(), [(1, 1), (2, 1)]);
}

#[test]
fn stopping_ends_all_and_starts_none() {
    let mut scene = Scene::running(rule(), 2);
    let (first, second) = (scene.fleet.members()[0].name, scene.fleet.members()[1].name);
    scene.fleet.stop(SECOND, scene.now, &mut scene.paper);
    scene.exit(first, true);
    assert!(scene.paper.terminated.contains(&second));
    scene.pass(SECOND);
    assert!(scene.paper.killed.contains(&second));
    assert_eq!(scene.exit(second, true), Some(Ending::Shutdown));
    scene.pass(SECOND * 60);
    assert_eq!(scene.paper.starts.len(), 2);
}

#[test]
fn who_holds_too_much_memory_goes_first_where_there_is_no_room_beside_it() {
    let mut scene = Scene::running(rule(), 1);
    scene.paper.no_memory = true;
    let name = scene.fleet.members()[0].name;
    scene.fleet.replace(name, Ending::Memory(1 << 30));
    scene.tick();
    assert_eq!((scene.serving().len(), scene.starting().len()), (0, 0));
    scene.settle();
    assert_ne!(scene.fleet.members()[0].name, name);
    assert_eq!(scene.serving(), [(1, 1)]);
}

fn guest(scene: &mut Scene, worker_id: &str, version: Option<&str>) -> Name {
    let name = scene.fleet.next_name();
    let version = version.map(|text| Version::parse(text).unwrap());
    let guest = Guest { name, worker_id: worker_id.to_owned(), pid: None, version, since: scene.now };
    scene.paper.alive.insert(name, false);
    scene.fleet.join(guest, scene.now, &mut scene.paper);
    name
}

#[test]
fn the_highest_version_that_has_joined_wins_and_lower_ones_wait_for_their_turn() {
    let mut scene = Scene::new(rule(), 0);
    let old = guest(&mut scene, "a", Some("1.9"));
    let any = guest(&mut scene, "b", None);
    let new = guest(&mut scene, "c", Some("1.10"));
    let late = guest(&mut scene, "d", Some("1.2"));
    let serves = |scene: &Scene| [old, any, new, late].map(|name| scene.paper.alive[&name]);
    assert_eq!(serves(&scene), [false, true, true, false]);
    scene.fleet.part(new, scene.now, &mut scene.paper);
    scene.paper.alive.insert(new, false);
    assert_eq!(serves(&scene), [true, true, false, false]);
    assert!(scene.fleet.part(new, scene.now, &mut scene.paper).is_none());
    assert_eq!(scene.fleet.state(), AppState::Running);
}

#[test]
fn versions_are_numbers_between_dots() {
    let version = |text| Version::parse(text).unwrap();
    assert!(version("2") > version("1.99.99") && version("1.10") > version("1.9") && version("1.0") == version("1"));
    for wrong in ["", "1.", "v1", "1.-2", "99999999999999999999999", &"1.".repeat(40)] {
        assert_eq!(Version::parse(wrong), None, "{wrong}");
    }
}
