//! The fleet with a machine of paper and a clock of its own.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

mod crashes;
mod edges;
mod starts;
mod trials;

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
    /// They have a request and have never said a byte.
    owing: BTreeSet<Name>,
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

    fn owes(&mut self, name: Name) -> bool {
        self.owing.contains(&name)
    }

    fn least_missed(&mut self, among: &[Name]) -> Option<Name> {
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
        checked: false,
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
        assert!(
            self.fleet.due().is_none_or(|due| due > self.now || self.fleet.course == Course::Stop),
            "nothing due is left undone"
        );
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
        let (how, last_lines) = ("exit: code 1".to_owned(), "no database".to_owned());
        let owed = self.paper.owing.contains(&name);
        self.end(name, &Exit { answered, owed, clean: false, how, last_lines })
    }

    /// It ends by itself with code 0, or by another's TERM.
    fn exit_cleanly(&mut self, name: Name, answered: bool) -> Option<Ending> {
        let (how, last_lines) = ("exit: code 0".to_owned(), String::new());
        self.end(name, &Exit { answered, owed: false, clean: true, how, last_lines })
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
fn how_many_are_wanted_and_whether_one_was_ever_ready() {
    let mut scene = Scene::new(rule(), 3);
    assert_eq!((scene.fleet.wanted(), scene.fleet.ever_ready()), (3, false));
    scene.ready(scene.starting()[0]);
    assert!(scene.fleet.ever_ready());
    scene.fleet.scale_to(2, "test", scene.now, &mut scene.paper);
    assert_eq!(scene.fleet.wanted(), 2);
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
fn scaling_up_starts_and_scaling_down_drains_those_that_are_missed_least() {
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
    let stops = |end: &RollEnd| matches!(end, RollEnd::Aborted { reason, .. } if reason == "the server stops");
    assert!(scene.ended_rolls().len() == 2 && scene.ended_rolls().iter().all(stops), "{:?}", scene.paper.told);
    assert!(scene.fleet.roll().is_none() && waits == 2, "nor does the queued one begin");
    assert_eq!(scene.fleet.last_roll().map(|report| report.id), Some(waits), "who waits for it is told");
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
fn a_worker_that_closes_its_door_during_the_stop_is_let_go_and_replaced_at_once() {
    let mut scene = Scene::running(rule(), 2);
    let (first, second) = (scene.fleet.members()[0].name, scene.fleet.members()[1].name);
    scene.fleet.hold_still(scene.now, &mut scene.paper);
    for name in [first, second] {
        scene.fleet.unreachable(name, scene.now, &mut scene.paper);
        scene.fleet.unreachable(name, scene.now, &mut scene.paper);
    }
    scene.tick();
    assert_eq!((scene.serving().len(), scene.starting().len()), (0, 2), "they are not waited for");
    assert_eq!(scene.paper.drained, [first, second]);
    scene.fleet.drained(first, scene.now, &mut scene.paper);
    assert!(scene.paper.terminated.contains(&first), "it would wait for its idle connections");
    assert_eq!(scene.exit(first, true), Some(Ending::Leaving));
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

fn join(scene: &mut Scene, worker_id: &str, version: Option<&str>) -> Name {
    let name = scene.fleet.next_name();
    let version = version.map(|text| Version::parse(text).unwrap());
    let worker = Joined { name, worker_id: worker_id.to_owned(), pid: None, version, since: scene.now };
    scene.paper.alive.insert(name, false);
    scene.fleet.join(worker, scene.now, &mut scene.paper);
    name
}

#[test]
fn the_highest_version_that_has_joined_wins_and_lower_ones_wait_for_their_turn() {
    let mut scene = Scene::new(rule(), 0);
    let old = join(&mut scene, "a", Some("1.9"));
    let any = join(&mut scene, "b", None);
    let new = join(&mut scene, "c", Some("1.10"));
    let late = join(&mut scene, "d", Some("1.2"));
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
