//! The scripted supervisor: it starts workers, hears of their deaths a little later, answers the dispatch's notices, and now and
//! then kills, drains or replaces a worker as operators do.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use production_server::backends::simulated::World;
use production_server::dispatch::{Dispatch, Notice, Target, WorkerId};
use production_server::mailbox::{Message, Postboxes};

use super::checks::Ledger;
use super::driver::{Kind, Plan, path_of};
use super::workers::{Temper, Worker};

/// How long it takes at most until a death is seen; below the time for which a doubtful exchange waits for that word.
const REAPING: Duration = Duration::from_millis(20);

/// What the supervisor is going to do.
#[derive(Debug)]
enum Task {
    /// A worker starts to listen and is ready.
    Ready(WorkerId),
    /// A worker's death is seen.
    Reap(WorkerId),
    /// A worker that had refused a connect is looked at.
    Look(WorkerId),
    /// Something that an operator or the machine does.
    Disturb,
    /// The app is tried again after it was given up.
    Recover,
}

/// The scripted supervisor, with its workers.
pub struct Supervisor {
    /// Workers that died or were killed.
    pub deaths: usize,
    world: World,
    ledger: Rc<RefCell<Ledger>>,
    dispatch: Arc<Dispatch>,
    postboxes: Postboxes,
    temper: Temper,
    concurrency: u32,
    wild: bool,
    resting: bool,
    workers: Vec<Worker>,
    tasks: Vec<(Instant, Task)>,
    notices: Vec<Notice>,
    next: u32,
    started: Instant,
}

impl Supervisor {
    /// Starts the plan's workers.
    pub fn new(
        world: &World,
        ledger: &Rc<RefCell<Ledger>>,
        plan: &Plan,
        dispatch: &Arc<Dispatch>,
        postboxes: &Postboxes,
    ) -> Supervisor {
        let mut supervisor = Supervisor {
            deaths: 0,
            world: world.clone(),
            ledger: Rc::clone(ledger),
            dispatch: Arc::clone(dispatch),
            postboxes: postboxes.clone(),
            temper: plan.temper,
            concurrency: plan.settings.app.concurrency,
            wild: plan.kind == Kind::Wild,
            resting: false,
            workers: Vec::new(),
            tasks: Vec::new(),
            notices: Vec::new(),
            next: 1,
            started: world.now(),
        };
        for _ in 0..plan.workers {
            supervisor.spawn();
        }
        if plan.kind != Kind::Orderly {
            supervisor.later(600, Task::Disturb);
        }
        supervisor
    }

    /// When it, or one of its workers, goes on by itself.
    pub fn deadline(&self) -> Option<Instant> {
        let now = self.world.now();
        let tasks = self.tasks.iter().map(|(at, _)| *at).filter(|at| *at > now);
        tasks.chain(self.workers.iter().filter_map(Worker::deadline)).min()
    }

    /// No more disturbances: the run is being stopped.
    pub fn rest(&mut self) {
        self.resting = true;
    }

    /// The end of all workers.
    pub fn end(mut self) {
        self.workers.iter_mut().for_each(Worker::kill);
    }

    /// Does what is due, and moves each worker.
    pub fn step(&mut self) {
        let now = self.world.now();
        while let Some(due) = self.tasks.iter().position(|(at, _)| *at <= now) {
            let (_, task) = self.tasks.swap_remove(due);
            self.carry_out(task, now);
            self.world.touch();
        }
        self.dispatch.notices(&mut self.notices);
        for notice in std::mem::take(&mut self.notices) {
            self.heed(notice);
            self.world.touch();
        }
        let mut dead = Vec::new();
        for worker in &mut self.workers {
            if worker.is_alive() && !worker.step() {
                dead.push(worker.id);
            }
        }
        dead.into_iter().for_each(|id| self.seen_soon(id));
    }

    /// In up to so many milliseconds.
    fn later(&mut self, milliseconds: usize, task: Task) {
        let delay = Duration::from_micros(self.world.below(milliseconds * 1000 + 1) as u64);
        self.tasks.push((self.world.now() + delay, task));
    }

    fn seen_soon(&mut self, id: WorkerId) {
        self.deaths += 1;
        self.later(REAPING.as_millis() as usize, Task::Reap(id));
    }

    fn spawn(&mut self) {
        let number = self.next;
        self.next += 1;
        let path = path_of(number);
        let address = socket2::SockAddr::unix(&path).unwrap();
        let label = format!("web.G1.{number}");
        let limit = self.world.chance(300).then(|| self.world.between(3, 20) as u64);
        let target = Target { address, label, unix: true, supervised: true, number };
        let id = self.dispatch.add(target, 1, limit).expect("dead workers leave room in the table");
        let worker = Worker::new(&self.world, &self.ledger, (number, id, path), self.temper, self.concurrency);
        self.workers.push(worker);
        self.later(100, Task::Ready(id));
    }

    fn worker(&mut self, id: WorkerId) -> Option<&mut Worker> {
        self.workers.iter_mut().find(|worker| worker.id == id)
    }

    fn carry_out(&mut self, task: Task, now: Instant) {
        self.world.note(format_args!("supervisor: {task:?} at {:?}", now - self.started));
        match task {
            Task::Ready(id) => {
                let Some(worker) = self.worker(id) else { return };
                worker.listen();
                self.make_ready(id, now);
            }
            Task::Reap(id) => {
                self.dispatch.died(id, now);
                self.postboxes.broadcast(|| Message::Died(id));
                self.workers.retain(|worker| worker.id != id);
                self.dispatch.remove(id, now);
                self.spawn();
            }
            Task::Look(id) => {
                if self.worker(id).is_some_and(|worker| worker.is_alive() && worker.draining.is_none()) {
                    self.make_ready(id, now);
                }
            }
            Task::Disturb => self.disturb(now),
            Task::Recover => self.dispatch.recover(),
        }
    }

    fn make_ready(&mut self, id: WorkerId, now: Instant) {
        for grant in self.dispatch.ready(id, now) {
            self.postboxes.grant(grant);
        }
    }

    fn heed(&mut self, notice: Notice) {
        self.world.note(format_args!("supervisor: {notice:?}"));
        match notice {
            Notice::Unreachable(id) => self.later(50, Task::Look(id)),
            Notice::Threshold(id) => self.replace(id),
            Notice::Drained(id) => self.terminate(id),
            Notice::Suspect(id) if self.world.chance(500) => self.terminate(id),
            Notice::Suspect(_) => {}
            Notice::Stuck(id) => self.terminate(id),
        }
    }

    /// The replacement first, then the old one is drained.
    fn replace(&mut self, id: WorkerId) {
        self.spawn();
        self.drain(id);
    }

    fn drain(&mut self, id: WorkerId) {
        let now = self.world.now();
        if let Some(worker) = self.worker(id).filter(|worker| worker.draining.is_none() && worker.is_alive()) {
            worker.draining = Some(now);
            let number = worker.number;
            self.world.note(format_args!("supervisor: drains {number}"));
            self.dispatch.drain(id, now);
        }
    }

    /// Ends a worker's process.
    fn terminate(&mut self, id: WorkerId) {
        if let Some(worker) = self.worker(id).filter(|worker| worker.is_alive()) {
            worker.kill();
            self.seen_soon(id);
        }
    }

    fn disturb(&mut self, now: Instant) {
        if self.resting || self.workers.is_empty() {
            return;
        }
        self.later(1500, Task::Disturb);
        let chosen = self.workers[self.world.below(self.workers.len())].id;
        let alive = self.worker(chosen).is_some_and(|worker| worker.is_alive());
        match self.world.below(if self.wild { 8 } else { 3 }) {
            0 if alive && self.workers.len() < 8 => self.replace(chosen),
            3 | 4 => self.terminate(chosen),
            5 => self.drain(chosen),
            6 if self.world.chance(100) => {
                for waiter in self.dispatch.fail() {
                    self.postboxes.post(waiter.loop_index, Message::AppFailed(waiter.exchange));
                }
                self.tasks.push((now + Duration::from_millis(200), Task::Recover));
            }
            7 => self.dispatch.unreachable(chosen, now),
            _ => {}
        }
        if matches!(self.dispatch.snapshot().eligible, 0) {
            self.later(100, Task::Look(chosen));
        }
    }
}
