//! The fleet of the real supervisor over scripted workers: they start late or never, die unseen for a moment, and an operator rolls,
//! scales, recycles, kills, pauses and resumes while requests come. Now and then a worker joins that nobody here started.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use production_server::backends::simulated::World;
use production_server::dispatch::{
    AppId, Dispatch, Moves, Notice, Snapshot, Standing, Target, WorkerId, WorkerSnapshot,
};
use production_server::fleet::{
    Ending, Event, Exit, Fleet, Joined, Machine, Member, Name, RestartRule, RollEnd, Rule, Start, Started, Version,
};
use production_server::mailbox::{Message, Postboxes};

use super::checks::Ledger;
use super::driver::{Kind, Plan, path_of};
use super::hubs::App;
use super::promises::Promises;
use super::workers::{Temper, Worker};

/// How long it takes at most until a death is seen; below the time for which a doubtful exchange waits for that word.
const REAPING: usize = 20;
/// Workers at a time, those included that leave.
const MOST: usize = 12;

/// What is going to happen.
#[derive(Clone, Copy, Debug)]
enum Task {
    /// A worker starts to listen, which is seen.
    Listen(Name),
    /// A worker that had refused a connect is looked at.
    Look(Name),
    /// A worker that was told to end does.
    End(Name),
    /// A worker's death is seen.
    Reap(Name),
    /// Something that an operator or the machine does.
    Disturb,
    /// A pause ends.
    Resume,
    /// Some of those who waited during a pause are let go.
    LetGo(usize),
}

/// A worker's process.
struct Process {
    name: Name,
    /// Started here, not joined.
    ours: bool,
    worker: Worker,
    /// Its death is on its way to be seen.
    dead: bool,
}

/// The scripted supervisor, with its workers.
pub struct Supervisor {
    /// Workers that died or were killed.
    pub deaths: usize,
    fleet: Fleet,
    promises: Promises,
    machine: ScriptedMachine,
    wild: bool,
    resting: bool,
    stopping: bool,
    joined: u32,
    notices: Vec<Notice>,
    started: Instant,
}

/// What carries out the fleet's decisions.
struct ScriptedMachine {
    world: World,
    ledger: Rc<RefCell<Ledger>>,
    dispatch: Arc<Dispatch>,
    postboxes: Postboxes,
    /// What workers answer events of sockets with.
    app: Option<Rc<RefCell<App>>>,
    temper: Temper,
    concurrency: u32,
    /// Starts of 1000 that come to nothing.
    breaks: u32,
    processes: Vec<Process>,
    tasks: Vec<(Instant, Task)>,
    /// Those beside whom there was no memory for another.
    unfit: Vec<Name>,
    next: u32,
    rolls: usize,
}

impl Supervisor {
    /// Starts the plan's workers.
    pub fn new(
        world: &World,
        ledger: &Rc<RefCell<Ledger>>,
        plan: &Plan,
        dispatch: &Arc<Dispatch>,
        postboxes: &Postboxes,
        app: Option<Rc<RefCell<App>>>,
    ) -> Supervisor {
        let now = world.now();
        let machine = ScriptedMachine {
            world: world.clone(),
            ledger: Rc::clone(ledger),
            dispatch: Arc::clone(dispatch),
            postboxes: postboxes.clone(),
            app,
            temper: plan.temper,
            concurrency: plan.settings.app.sharing.concurrency,
            breaks: if plan.kind == Kind::Wild { 150 } else { 0 },
            processes: Vec::new(),
            tasks: Vec::new(),
            unfit: Vec::new(),
            next: 1,
            rolls: 0,
        };
        let rule = rule(world, plan);
        let mut supervisor = Supervisor {
            deaths: 0,
            promises: Promises::new(&rule),
            fleet: Fleet::new(rule, plan.workers, now),
            machine,
            wild: plan.kind == Kind::Wild,
            resting: false,
            stopping: false,
            joined: 0,
            notices: Vec::new(),
            started: now,
        };
        supervisor.fleet.tick(now, &mut supervisor.machine);
        if plan.kind != Kind::Orderly {
            supervisor.machine.later(600, Task::Disturb);
        }
        supervisor
    }

    /// Rolls that have ended.
    pub fn rolls(&self) -> usize {
        self.machine.rolls
    }

    /// When it, or one of its workers, goes on by itself.
    pub fn deadline(&self) -> Option<Instant> {
        let now = self.machine.world.now();
        let tasks = self.machine.tasks.iter().map(|(at, _)| *at).chain(self.fleet.due()).filter(|at| *at > now);
        tasks.chain(self.machine.processes.iter().filter_map(|process| process.worker.deadline())).min()
    }

    /// No more disturbances, and what was begun comes to its end.
    pub fn calm_down(&mut self) {
        self.resting = true;
        self.machine.breaks = 0;
        self.resume();
    }

    /// Whether as many workers serve as are wanted, and nobody leaves. If the last roll was not aborted they are of one generation.
    pub fn is_settled(&self) -> bool {
        let (members, generation) = (self.fleet.members(), self.fleet.generation());
        let settled = self.fleet.roll().is_none()
            && members.len() == self.fleet.wanted()
            && members.iter().all(Member::is_running);
        if settled && self.fleet.last_roll().is_some_and(|report| report.end == RollEnd::Done) {
            assert!(members.iter().all(|member| member.generation == generation), "a roll has left somebody behind");
        }
        settled
    }

    /// Where everybody stands, for the message of a broken rule.
    pub fn describe(&self) -> String {
        let (wanted, roll) = (self.fleet.wanted(), self.fleet.roll());
        format!("{wanted} wanted, {roll:?}, {:#?} {:#?}", self.fleet.members(), self.fleet.places())
    }

    /// The run is being stopped.
    pub fn rest(&mut self) {
        self.resting = true;
        self.stopping = true;
        let now = self.machine.world.now();
        self.fleet.hold_still(now, &mut self.machine);
        self.resume();
    }

    /// Ends a pause, if there is one. Those who waited are let go a few at a time, by tasks.
    fn resume(&mut self) {
        let waiting = self.machine.dispatch.resume(self.machine.world.now());
        if waiting > 0 {
            self.machine.tasks.push((self.machine.world.now(), Task::LetGo(waiting.div_ceil(4))));
        }
    }

    /// The end of all workers.
    pub fn end(mut self) {
        self.machine.processes.iter_mut().for_each(|process| process.worker.kill());
    }

    /// Does what is due, and moves each worker.
    pub fn step(&mut self) {
        let now = self.machine.world.now();
        while let Some(due) = self.machine.tasks.iter().position(|(at, _)| *at <= now) {
            let (_, task) = self.machine.tasks.swap_remove(due);
            self.carry_out(task, now);
            self.check(now);
            self.machine.world.touch();
        }
        self.machine.dispatch.notices(&mut self.notices);
        for notice in std::mem::take(&mut self.notices) {
            self.act_on(notice, now);
            self.check(now);
            self.machine.world.touch();
        }
        if self.fleet.due().is_some_and(|due| due <= now) {
            self.machine.world.touch();
        }
        self.fleet.tick(now, &mut self.machine);
        self.check(now);
        let mut dead = Vec::new();
        for process in self.machine.processes.iter_mut().filter(|process| process.worker.is_alive()) {
            if !process.worker.step() {
                dead.push(process.name);
            }
        }
        dead.into_iter().for_each(|name| self.machine.seen_soon(name));
    }

    fn carry_out(&mut self, task: Task, now: Instant) {
        self.machine.world.note(format_args!("supervisor: {task:?} at {:?}", now - self.started));
        match task {
            Task::Listen(name) => {
                let Some(process) = self.machine.process(name).filter(|process| !process.dead) else { return };
                process.worker.listen();
                self.fleet.ready(name, now, &mut self.machine);
            }
            Task::Look(name) => {
                if self.machine.process(name).is_some_and(|process| process.worker.is_alive()) {
                    self.fleet.ready(name, now, &mut self.machine);
                }
            }
            Task::End(name) => {
                if let Some(process) = self.machine.process(name).filter(|process| !process.dead) {
                    process.worker.kill();
                    self.machine.seen_soon(name);
                }
            }
            Task::Reap(name) => self.reap(name, now),
            Task::Disturb => self.disturb(now),
            Task::Resume => self.resume(),
            Task::LetGo(most) => {
                let (grants, more) = self.machine.dispatch.let_go(most);
                for grant in grants {
                    self.machine.postboxes.grant(grant);
                }
                if more {
                    self.machine.tasks.push((now + Duration::from_millis(10), Task::LetGo(most)));
                }
            }
        }
    }

    fn reap(&mut self, name: Name, now: Instant) {
        self.deaths += 1;
        let Some(exit) = self.machine.reap(name, now) else { return };
        self.fleet.exited(name, &exit, now, &mut self.machine);
    }

    fn act_on(&mut self, notice: Notice, now: Instant) {
        self.machine.world.note(format_args!("supervisor: {notice:?}"));
        let (Notice::Unreachable(id)
        | Notice::Threshold(id)
        | Notice::Drained(id)
        | Notice::Suspect(id)
        | Notice::Stuck(id)
        | Notice::Failing(id)
        | Notice::Recovers(id)
        | Notice::Spared(id)) = notice;
        let found = self.machine.processes.iter().find(|process| process.worker.id == id);
        if let (Notice::Suspect(_) | Notice::Stuck(_), Some(process)) = (notice, found) {
            let stuck = notice == Notice::Stuck(id);
            let silent = self.machine.ledger.borrow().was_silent(process.worker.number, stuck, now);
            assert!(silent, "worker {} was reported, {notice:?}, and did its work", process.worker.number);
        }
        let Some((name, ours)) = found.map(|process| (process.name, process.ours)) else { return };
        match notice {
            // One that joined is gone at its first refused connect, and also when its last request has ended after it quit.
            Notice::Unreachable(_) | Notice::Drained(_) if !ours => self.part(name, now),
            Notice::Unreachable(_) => self.fleet.unreachable(name, now, &mut self.machine),
            Notice::Threshold(_) => self.fleet.replace(name, Ending::Requests(0)),
            Notice::Drained(_) => self.fleet.drained(name, now, &mut self.machine),
            Notice::Suspect(_) if ours => self.fleet.timed_out(name, "", now, &mut self.machine),
            Notice::Stuck(_) if ours => {
                self.fleet.stuck(name, Ending::Deadline(Duration::ZERO), now, &mut self.machine);
            }
            Notice::Suspect(_) | Notice::Stuck(_) => {}
            Notice::Failing(_) | Notice::Recovers(_) | Notice::Spared(_) => {}
        }
    }

    /// One that joined is forgotten. Its process goes on, and ends some time.
    fn part(&mut self, name: Name, now: Instant) {
        self.fleet.part(name, now, &mut self.machine);
        self.machine.later(50, Task::End(name));
    }

    fn join(&mut self, now: Instant) {
        let name = self.fleet.next_name();
        self.joined += 1;
        let (generation, temper) = (self.fleet.generation(), Temper { dies: 0, ..self.machine.temper });
        let Some(process) = self.machine.launch(name, generation, None, temper, false) else { return };
        process.worker.joined = true;
        process.worker.listen();
        let text = ["1", "2", "1.5"][self.machine.world.below(3)];
        let version = self.machine.world.chance(700).then(|| Version::parse(text).unwrap());
        let worker = Joined { name, worker_id: format!("joined-{}", self.joined), pid: None, version, since: now };
        self.fleet.join(worker, now, &mut self.machine);
    }

    fn disturb(&mut self, now: Instant) {
        if self.resting || self.machine.processes.is_empty() {
            return;
        }
        self.machine.later(1500, Task::Disturb);
        let chosen = self.machine.processes[self.machine.world.below(self.machine.processes.len())].name;
        let joined = self.fleet.joined().first().map(|worker| worker.name);
        match self.machine.world.below(if self.wild { 16 } else { 9 }) {
            0 | 1 => {
                self.fleet.restart(now, &mut self.machine);
            }
            2 | 3 => {
                let target = self.machine.world.between(1, 5);
                self.fleet.scale_to(target, "test", now, &mut self.machine);
            }
            4 => self.fleet.replace(chosen, Ending::Memory(0)),
            5 if self.machine.processes.len() < MOST => self.join(now),
            6 => {
                // It quits: it is drained, and parted with when it has nothing left.
                if let Some(worker) = joined {
                    self.fleet.part(worker, now, &mut self.machine);
                    self.machine.drain(worker, now);
                }
            }
            7 => {
                self.machine.dispatch.pause();
                self.machine.later(400, Task::Resume);
            }
            8 => (0..3).for_each(|_| self.fleet.reloaded(chosen)),
            9 | 10 => self.machine.kill(chosen),
            11 => self.machine.terminate(chosen, now),
            12 => self.fleet.stuck(chosen, Ending::Watchdog(Duration::ZERO), now, &mut self.machine),
            13 => self.fleet.unreachable(chosen, now, &mut self.machine),
            14 => {
                // It says that it stops, and does.
                self.fleet.leaving(chosen, now, &mut self.machine);
                self.machine.later(1000, Task::End(chosen));
            }
            15 => self.fleet.displaced(chosen, now, &mut self.machine),
            _ => {}
        }
    }

    /// What holds at every moment.
    fn check(&mut self, now: Instant) {
        for name in self.machine.unfit.drain(..) {
            self.promises.unfit(name);
        }
        let machine = &self.machine;
        let gets_none = |name: Name| {
            let found = machine.processes.iter().find(|process| process.name == name);
            found.is_none_or(|process| process.dead || process.worker.draining.is_some())
        };
        self.promises.check(&self.fleet, now, |name| machine.answered(name), gets_none);
        for place in self.fleet.places() {
            let here = self.fleet.members().iter().filter(|it| it.number == place.number && it.is_active()).count();
            assert!(here <= 2, "{here} workers fill place {}", place.number);
        }
    }
}

impl ScriptedMachine {
    /// In up to so many milliseconds.
    fn later(&mut self, milliseconds: usize, task: Task) {
        let delay = Duration::from_micros(self.world.below(milliseconds * 1000 + 1) as u64);
        self.tasks.push((self.world.now() + delay, task));
    }

    fn process(&mut self, name: Name) -> Option<&mut Process> {
        self.processes.iter_mut().find(|process| process.name == name)
    }

    fn id(&self, name: Name) -> Option<WorkerId> {
        self.processes.iter().find(|process| process.name == name).map(|process| process.worker.id)
    }

    fn answered(&self, name: Name) -> bool {
        let snapshot = self.dispatch.snapshot();
        self.id(name).and_then(|id| snapshot.worker(id)).is_some_and(|worker| worker.answered_at.is_some())
    }

    fn seen_soon(&mut self, name: Name) {
        if let Some(process) = self.process(name).filter(|process| !process.dead) {
            process.dead = true;
            self.later(REAPING, Task::Reap(name));
        }
    }

    fn launch(
        &mut self,
        name: Name,
        generation: u32,
        limit: Option<u64>,
        temper: Temper,
        ours: bool,
    ) -> Option<&mut Process> {
        let number = self.next;
        self.next += 1;
        let path = path_of(number);
        let address = socket2::SockAddr::unix(&path).unwrap();
        let label = format!("web.G{generation}.{number}");
        let moves = Arc::new(Moves::new(self.world.now()));
        let target = Target { address, label, unix: true, supervised: ours, number, moves };
        let id = self.dispatch.add(target, generation, limit)?;
        let mut worker = Worker::new(&self.world, &self.ledger, (number, id, path), temper, self.concurrency);
        worker.app = self.app.clone();
        self.processes.push(Process { name, ours, worker, dead: false });
        self.processes.last_mut()
    }

    fn owes_by(&self, id: WorkerId) -> bool {
        self.dispatch.snapshot().worker(id).is_some_and(WorkerSnapshot::owes)
    }

    /// As the supervisor does it: the word of the death first.
    fn reap(&mut self, name: Name, now: Instant) -> Option<Exit> {
        let position = self.processes.iter().position(|process| process.name == name)?;
        let process = self.processes.swap_remove(position);
        let id = process.worker.id;
        let owed = self.owes_by(id);
        if process.ours {
            self.dispatch.died(id, now);
            self.postboxes.broadcast(|| Message::Died(AppId::default(), id));
        }
        let answered = self.dispatch.snapshot().worker(id).is_some_and(|worker| worker.answered_at.is_some());
        self.postboxes.broadcast(|| Message::Retire(AppId::default(), id));
        self.dispatch.remove(id, now);
        Some(Exit { answered, owed, clean: false, how: "crash".to_owned(), last_lines: String::new() })
    }
}

impl Machine for ScriptedMachine {
    fn start(&mut self, start: Start) -> Started {
        self.world.touch();
        self.world.note(format_args!("fleet: {start:?}"));
        if self.world.chance(self.breaks / 4) {
            return Started::Failed("no such command".to_owned());
        }
        let temper = self.temper;
        let limit = (start.limit > 0).then_some(start.limit);
        if self.launch(start.name, start.generation, limit, temper, true).is_none() {
            return Started::NoRoom;
        }
        match self.world.below(3) {
            // It dies before it listens.
            0 if self.world.chance(self.breaks) => self.later(100, Task::End(start.name)),
            // It never listens.
            1 if self.world.chance(self.breaks) => {}
            _ => self.later(100, Task::Listen(start.name)),
        }
        Started::Yes
    }

    fn open(&mut self, name: Name, now: Instant) {
        let Some(id) = self.id(name) else { return };
        for grant in self.dispatch.ready(id, now) {
            self.postboxes.grant(grant);
        }
    }

    fn shut(&mut self, name: Name, now: Instant) {
        if let Some(id) = self.id(name) {
            self.dispatch.unreachable(id, now);
        }
    }

    fn drain(&mut self, name: Name, now: Instant) {
        let Some(process) = self.process(name) else { return };
        process.worker.draining.get_or_insert(now);
        let id = process.worker.id;
        self.dispatch.drain(id, now);
    }

    fn look(&mut self, name: Name, now: Instant) {
        if let Some(id) = self.id(name) {
            self.dispatch.unreachable(id, now);
        }
        self.later(50, Task::Look(name));
    }

    fn terminate(&mut self, name: Name, now: Instant) {
        let Some(process) = self.process(name) else { return };
        let id = process.worker.id;
        process.worker.draining.get_or_insert(now);
        self.dispatch.drain(id, now);
        self.postboxes.broadcast(|| Message::Retire(AppId::default(), id));
        // Some do not listen to TERM.
        if !self.world.chance(self.breaks) {
            self.later(50, Task::End(name));
        }
    }

    fn signal(&mut self, _name: Name, _signal: i32) {}

    fn kill(&mut self, name: Name) {
        if let Some(process) = self.process(name).filter(|process| process.ours && !process.dead) {
            process.worker.kill();
            self.seen_soon(name);
        }
    }

    /// As where there is no /proc.
    fn cpu_time(&mut self, _name: Name) -> Option<Duration> {
        None
    }

    fn fits_beside(&mut self, name: Name) -> bool {
        let fits = !self.world.chance(50);
        self.unfit.extend((!fits).then_some(name));
        fits
    }

    fn has_answered(&mut self, name: Name) -> bool {
        self.answered(name)
    }

    fn owes(&mut self, name: Name) -> bool {
        self.id(name).is_some_and(|id| self.owes_by(id))
    }

    fn least_missed(&mut self, among: &[Name]) -> Option<Name> {
        among.get(self.world.below(among.len().max(1))).copied()
    }

    fn give_up(&mut self, _now: Instant) {
        for waiter in self.dispatch.fail() {
            self.postboxes.post(waiter.loop_index, Message::AppFailed(waiter.exchange));
        }
    }

    fn recover(&mut self) {
        self.dispatch.recover();
    }

    fn say(&mut self, event: Event) {
        self.world.note(format_args!("fleet: {event:?}"));
        self.rolls += usize::from(matches!(event, Event::RollEnded(_)));
    }
}

fn rule(world: &World, plan: &Plan) -> Rule {
    let wild = plan.kind == Kind::Wild;
    let milliseconds = |from: usize, to: usize| Duration::from_millis(world.between(from, to) as u64);
    Rule {
        restart: RestartRule {
            base: Duration::from_millis(20),
            max: Duration::from_millis(500),
            crashes: 5,
            within: Duration::from_secs(2),
            max_restarts: 10,
        },
        requests: if world.chance(400) { world.between(3, 20) as u64 } else { 0 },
        requests_not_before: milliseconds(0, 1000),
        jitter_percent: 10,
        lifetime: world.chance(300).then(|| milliseconds(500, 4000)),
        reloads: if world.chance(300) { world.between(1, 4) as u64 } else { 0 },
        ready_timeout: milliseconds(200, 2000),
        proven_after: milliseconds(200, 2000),
        checked: false,
        start_parallel: world.between(1, 4),
        // What a good worker has in hand ends in this time; what a bad one has need not.
        drain: if wild { milliseconds(50, 4000) } else { Duration::from_secs(60) },
        parallel: world.between(1, 2),
        max_unavailable: if wild { world.below(2) } else { 0 },
        dump_signal: world.chance(500).then_some(3),
        seed: world.below(1000) as u64,
    }
}

/// Of a good run: whether somebody of an older generation was given a request although one of a newer generation did nothing from
/// before until after.
pub fn passed_over(before: &Snapshot, after: &Snapshot, concurrency: u32) -> bool {
    let touched = |id: WorkerId| match (before.worker(id), after.worker(id)) {
        (Some(before), Some(after)) => before.in_flight + before.served as u32 != after.in_flight + after.served as u32,
        _ => true,
    };
    let begun = |id: WorkerId| match (before.worker(id), after.worker(id)) {
        (Some(before), Some(after)) => {
            u64::from(after.in_flight) + after.served > u64::from(before.in_flight) + before.served
        }
        _ => false,
    };
    let free = |worker: &&production_server::dispatch::WorkerSnapshot| {
        worker.standing == Standing::Ready && worker.in_flight < concurrency && !touched(worker.id)
    };
    // While those who waited during a pause are let go, a worker's slot goes straight on to the next of them.
    if before.paused || after.paused {
        return false;
    }
    let newest = before.workers.iter().filter(free).map(|worker| worker.app_generation).max();
    newest.is_some_and(|newest| before.workers.iter().any(|worker| worker.app_generation < newest && begun(worker.id)))
}
