//! The workers: who is eligible, who has room, and whose turn it is. All access is under the dispatch's lock.
//!
//! Workers of one app generation form a cohort; the newest cohort goes first. A cohort keeps, for each number of requests in
//! flight, a doubly linked list of its workers with that many (round-robin: one list of all with room), and knows the
//! lowest number that has any. So a choice is the head of one list, and a request begun or ended moves one worker by one
//! list: constant time, for any number of workers and any concurrency. A worker stands in a list exactly while it is
//! eligible ([`Standing::Ready`]) and has room. [`Workers::choose`] says what the places in a list mean.

use std::cmp::Reverse;
use std::sync::Arc;

use super::load::Load;
use super::outcomes::Record;
use super::types::{Slot, Wish};
use super::{Balance, Notice, Policy, Standing, Target, WorkerId};
use crate::buffers::slots::Key;
use crate::planted::{self, Bug};

/// No worker, no list.
const NONE: u32 = u32::MAX;

/// The kinds of notice, in the order in which they are told. Each worker has one bit for each.
const NOTICES: [fn(WorkerId) -> Notice; 8] = [
    Notice::Unreachable,
    Notice::Threshold,
    Notice::Drained,
    Notice::Suspect,
    Notice::Stuck,
    Notice::Failing,
    Notice::Recovers,
    Notice::Spared,
];
pub(super) const UNREACHABLE: u8 = 1;
pub(super) const THRESHOLD: u8 = 1 << 1;
pub(super) const DRAINED: u8 = 1 << 2;
pub(super) const SUSPECT: u8 = 1 << 3;
pub(super) const STUCK: u8 = 1 << 4;
pub(super) const FAILING: u8 = 1 << 5;
pub(super) const RECOVERS: u8 = 1 << 6;
pub(super) const SPARED: u8 = 1 << 7;

/// One worker, or a vacant place for one.
pub(super) struct Worker {
    /// Which life of this place; 0 before the first.
    generation: u32,
    vacant: bool,
    pub standing: Standing,
    link: Link,
    pub load: Load,
    pub record: Record,
    /// Notices that nobody has taken yet, one bit each.
    told: u8,
    /// To be forgotten once its permits are back.
    pub removed: bool,
    /// Its process id; 0 before it is known, and for what is not ours.
    pub process: u32,
    /// Its process has ended with code 0.
    pub ended_well: bool,
    /// Stays behind in a vacant place, so that nothing is freed under the lock.
    pub target: Option<Arc<Target>>,
}

/// Where a worker stands in the lists.
struct Link {
    cohort: u32,
    /// The list it stands in, or [`NONE`].
    level: u32,
    previous: u32,
    next: u32,
}

/// The workers of one app generation, or a vacant place for them.
struct Cohort {
    app_generation: u32,
    workers: u32,
    /// The lowest level whose list is not empty, or the number of levels.
    lowest: u32,
    /// As many as each worker may have requests in flight; round-robin uses the first alone.
    lists: Box<[List]>,
}

impl Cohort {
    #[inline]
    fn concurrency(&self) -> u32 {
        self.lists.len() as u32
    }

    /// The lowest list may be empty by now: finds the next one that is not.
    fn rise(&mut self) {
        let beyond = self.lists.len();
        let from = self.lowest as usize;
        self.lowest = (from..beyond).find(|&level| self.lists[level].head != NONE).unwrap_or(beyond) as u32;
    }
}

/// What a place held before, to be freed once the lock is open.
pub(super) type Past = (Option<Arc<Target>>, Option<Box<[List]>>);

/// The ends of a list.
#[derive(Clone, Copy)]
pub(super) struct List {
    head: u32,
    tail: u32,
}

pub(super) struct Workers {
    places: Box<[Worker]>,
    cohorts: Vec<Cohort>,
    /// The cohorts that have workers, newest first.
    order: Vec<u32>,
    balance: Balance,
    /// That of the next generation; the others' are their cohorts'.
    concurrency: u32,
    max_tunnels: u32,
    eligible: u32,
    /// How many workers have a notice that nobody has taken.
    telling: u32,
}

impl Workers {
    pub fn new(policy: &Policy, limit: usize) -> Workers {
        let vacant = || Worker {
            generation: 0,
            vacant: true,
            standing: Standing::Dead,
            link: Link { cohort: NONE, level: NONE, previous: NONE, next: NONE },
            load: Load::new(0),
            record: Record::new(None),
            told: 0,
            removed: false,
            process: 0,
            ended_well: false,
            target: None,
        };
        Workers {
            places: (0..limit).map(|_| vacant()).collect(),
            cohorts: Vec::with_capacity(limit),
            order: Vec::with_capacity(limit),
            balance: policy.balance,
            concurrency: policy.concurrency,
            max_tunnels: policy.max_tunnels,
            eligible: 0,
            telling: 0,
        }
    }

    /// Empty lists for one more cohort, made before the lock is taken.
    pub fn lists(concurrency: u32) -> Box<[List]> {
        vec![List { head: NONE, tail: NONE }; concurrency.max(1) as usize].into()
    }

    /// Requests at once of workers of the next generation.
    pub fn concurrency(&self) -> u32 {
        self.concurrency
    }

    /// The most requests at once that any worker may have.
    pub fn most_concurrency(&self) -> u32 {
        self.order.iter().map(|&cohort| self.cohorts[cohort as usize].concurrency()).max().unwrap_or(self.concurrency)
    }

    /// Other rules hold from now on. With another balance each worker with room stands in another list: in the order of the table, as
    /// if all had just come.
    pub fn set_policy(&mut self, policy: &Policy) {
        self.concurrency = policy.concurrency.max(1);
        self.max_tunnels = policy.max_tunnels;
        if std::mem::replace(&mut self.balance, policy.balance) == policy.balance {
            return;
        }
        let listed: Vec<u32> = (0..self.places.len() as u32).filter(|&index| self.has_room(index)).collect();
        listed.iter().for_each(|&index| self.withdraw(index));
        listed.iter().for_each(|&index| self.link(index, self.level_of(index), false));
    }

    /// Requests at once of a worker.
    #[inline]
    fn concurrency_of(&self, index: u32) -> u32 {
        self.cohorts[self.places[index as usize].link.cohort as usize].concurrency()
    }

    /// Changes how many requests a worker may have: it is listed anew, or no more.
    pub fn share(&mut self, index: u32, change: impl FnOnce(&mut Load)) {
        let concurrency = self.concurrency_of(index);
        let worker = &mut self.places[index as usize];
        change(&mut worker.load);
        worker.load.share(concurrency);
        let (fits, listed) = (worker.load.has_capacity(), worker.link.level != NONE);
        if listed && !fits {
            self.withdraw(index);
        } else if fits && !listed && worker.standing == Standing::Ready {
            self.link(index, self.level_of(index), self.balance == Balance::Lifo);
        }
    }

    /// Whether a slot that is kept from requests is free.
    pub fn has_spare(&self, index: u32) -> bool {
        let load = &self.places[index as usize].load;
        load.spared && load.in_flight < self.concurrency_of(index)
    }

    /// Whether it is so by the request that has just ended.
    #[inline]
    pub fn has_spared(&self, index: u32) -> bool {
        let load = &self.places[index as usize].load;
        load.spared && load.in_flight + 1 == self.concurrency_of(index)
    }

    /// Gives a new worker a place, and hands out what is to be freed once the lock is open.
    pub fn insert(
        &mut self,
        target: Arc<Target>,
        app_generation: u32,
        request_limit: Option<u64>,
        lists: Box<[List]>,
    ) -> Option<(WorkerId, Past)> {
        let index = self.places.iter().position(|worker| worker.vacant)? as u32;
        let (cohort, spare) = self.cohort(app_generation, lists);
        self.cohorts[cohort as usize].workers += 1;
        let capacity = self.cohorts[cohort as usize].concurrency();
        let worker = &mut self.places[index as usize];
        worker.generation = worker.generation.wrapping_add(1).max(1);
        let past = worker.target.replace(target);
        worker.vacant = false;
        worker.standing = Standing::Starting;
        (worker.removed, worker.process, worker.ended_well) = (false, 0, false);
        worker.link.cohort = cohort;
        debug_assert!(worker.load.is_none(), "a vacant place is in use");
        worker.load = Load::new(capacity);
        worker.record = Record::new(request_limit);
        debug_assert!(worker.link.level == NONE && worker.told == 0, "a vacant place is in use");
        Some((self.id(index), (past, spare)))
    }

    /// The place of a living name.
    #[inline]
    pub fn find(&self, id: WorkerId) -> Option<u32> {
        let worker = self.places.get(id.index as usize)?;
        (worker.generation == id.generation && !worker.vacant).then_some(id.index)
    }

    #[inline]
    pub fn at(&self, index: u32) -> &Worker {
        &self.places[index as usize]
    }

    #[inline]
    pub fn at_mut(&mut self, index: u32) -> &mut Worker {
        &mut self.places[index as usize]
    }

    pub fn id(&self, index: u32) -> WorkerId {
        Key { index, generation: self.places[index as usize].generation }
    }

    pub fn lookup(&self, id: WorkerId) -> Option<&Worker> {
        self.find(id).map(|index| self.at(index))
    }

    /// How many workers are eligible, busy or idle.
    #[inline]
    pub fn eligible(&self) -> u32 {
        self.eligible
    }

    /// Whether the worker may be given one more request.
    #[inline]
    pub fn has_room(&self, index: u32) -> bool {
        self.places[index as usize].link.level != NONE
    }

    /// Whether any worker may be given one more request.
    pub fn any_room(&self) -> bool {
        self.order.iter().any(|&cohort| self.lowest(cohort).is_some())
    }

    /// Whether who would rather not have one worker has another to wait for.
    #[inline]
    fn refusable(&self) -> bool {
        self.eligible > 1
    }

    /// For whom a slot of this worker will do.
    #[inline]
    pub fn slot(&self, index: u32) -> Slot {
        Slot { worker: self.id(index), refusable: self.refusable(), tunnel: self.takes_tunnel(self.at(index)) }
    }

    /// Whether a worker may have one more tunnel, counting those that may yet come of requests in flight.
    #[inline]
    fn takes_tunnel(&self, worker: &Worker) -> bool {
        worker.load.tunnel_load() < self.max_tunnels
    }

    /// Whether a request for a tunnel has nothing to wait for: there are eligible workers, and all that would do are full of tunnels.
    #[cold]
    pub fn no_tunnel(&self, exclude: WorkerId) -> bool {
        let excluded = self.excluded(exclude);
        let mut eligible = (0..).zip(&self.places).filter(|(_, worker)| worker.standing == Standing::Ready);
        self.eligible > 0 && eligible.all(|(index, worker)| index == excluded || !self.takes_tunnel(worker))
    }

    /// Whose turn it is: a worker with room, of the newest cohort that has one, and there
    ///
    /// - LIFO: one with the fewest requests in flight; among these the one whose request ended last (those that came to this
    ///   number by a new request stand behind, in the order of these requests);
    /// - least: one with the fewest in flight; among these the one that came to this number first;
    /// - round-robin: the one that longest ago was given a request or, having been full, got room.
    ///
    /// For a tunnel it is one with room for it, and the fewest tunnels; among these the one whose turn it is.
    ///
    /// The worker that the wish excludes is passed over while any other is eligible, even if that one is busy.
    #[inline]
    pub fn choose(&self, wish: Wish) -> Option<u32> {
        let excluded = self.excluded(wish.exclude);
        if wish.tunnel {
            return self.choose_for_tunnel(excluded);
        }
        self.order.iter().find_map(|&cohort| {
            let head = self.lowest(cohort)?;
            if head != excluded { Some(head) } else { self.behind(head) }
        })
    }

    /// The place of a worker that is to be passed over, or [`NONE`].
    #[inline]
    fn excluded(&self, exclude: WorkerId) -> u32 {
        match self.find(exclude) {
            Some(index) if self.refusable() => index,
            _ => NONE,
        }
    }

    /// Tunnels are few and long, so all workers are looked at: first for the fewest tunnels and the level at which they are found,
    /// then in that one list for whose turn it is.
    #[cold]
    fn choose_for_tunnel(&self, excluded: u32) -> Option<u32> {
        let fits =
            |index: u32, worker: &Worker| index != excluded && worker.link.level != NONE && self.takes_tunnel(worker);
        let rank =
            |worker: &Worker| (Reverse(self.app_generation(worker)), worker.load.tunnel_load(), worker.link.level);
        let fitting = (0..).zip(&self.places).filter(|(index, worker)| fits(*index, worker)).map(|(_, worker)| worker);
        let best = fitting.min_by_key(|worker| rank(worker))?;
        let mut index = self.cohorts[best.link.cohort as usize].lists[best.link.level as usize].head;
        while index != NONE {
            let worker = self.at(index);
            if fits(index, worker) && worker.load.tunnel_load() == best.load.tunnel_load() {
                return Some(index);
            }
            index = worker.link.next;
        }
        debug_assert!(false, "a worker stands in no list");
        None
    }

    /// The worker next in turn in the cohort of one who is first in turn.
    #[cold]
    fn behind(&self, head: u32) -> Option<u32> {
        let first = &self.places[head as usize];
        if first.link.next != NONE {
            return Some(first.link.next);
        }
        let lists = &self.cohorts[first.link.cohort as usize].lists;
        lists[first.link.level as usize + 1..].iter().map(|list| list.head).find(|&head| head != NONE)
    }

    /// Some eligible worker.
    pub fn any_eligible(&self) -> Option<u32> {
        self.places.iter().position(|worker| worker.standing == Standing::Ready).map(|index| index as u32)
    }

    /// Begins one more request on a worker that has room.
    #[inline]
    pub fn take(&mut self, index: u32, tunnel: bool) -> WorkerId {
        let worker = &mut self.places[index as usize];
        debug_assert!(worker.link.level != NONE, "a worker without room was chosen");
        worker.load.begin(tunnel);
        let id = Key { index, generation: worker.generation };
        let (level, cohort) = (worker.link.level, worker.link.cohort);
        let up = if worker.load.has_capacity() { self.level_of(index) } else { NONE };
        let emptied = self.unlink(index);
        if up != NONE {
            self.link(index, up, false);
        }
        // The next list that is not empty is the one it went to: it was the lowest, and it moved up by one. Where it may have no more,
        // others may stand higher. (Round-robin has only one list, to which it went back.)
        if emptied && up != level {
            let cohort = &mut self.cohorts[cohort as usize];
            let lists = cohort.lists.len() as u32;
            match cohort.lowest == level {
                true if up == NONE && level + 1 < lists => cohort.rise(),
                true => cohort.lowest = up.min(lists),
                false => {}
            }
        }
        id
    }

    /// Ends one request on a worker, which goes behind its equals where it has `declined`. True if it may get another: an eligible one has room
    /// then.
    #[inline]
    pub fn give_back(&mut self, index: u32, tunnel: bool, declined: bool) -> bool {
        let worker = &mut self.places[index as usize];
        worker.load.end(tunnel);
        if worker.standing != Standing::Ready {
            return false;
        }
        let level = worker.load.in_flight;
        let listed = worker.link.level != NONE;
        if !listed && !worker.load.has_capacity() {
            return false;
        }
        match self.balance {
            Balance::RoundRobin if listed => (),
            Balance::RoundRobin => self.link(index, 0, false),
            Balance::Lifo | Balance::Least => {
                if listed {
                    self.unlink(index);
                }
                self.link(index, level, self.balance == Balance::Lifo && !declined);
            }
        }
        true
    }

    /// Moves a worker to another standing, and in or out of the lists.
    pub fn enter(&mut self, index: u32, standing: Standing) {
        let worker = &mut self.places[index as usize];
        let was = std::mem::replace(&mut worker.standing, standing);
        let stale = planted::active(Bug::StaleWorker) && matches!(standing, Standing::Draining | Standing::Dead);
        if was == Standing::Ready && standing != Standing::Ready {
            self.eligible -= 1;
            if self.has_room(index) && !stale {
                self.withdraw(index);
            }
        } else if was != Standing::Ready && standing == Standing::Ready {
            self.eligible += 1;
            if worker.load.has_capacity() && worker.link.level == NONE {
                self.link(index, self.level_of(index), self.balance == Balance::Lifo);
            }
        }
    }

    /// Takes a worker out of the lists for good, though not by a new request: the lowest level is searched for.
    fn withdraw(&mut self, index: u32) {
        let cohort = self.places[index as usize].link.cohort as usize;
        self.unlink(index);
        self.cohorts[cohort].rise();
    }

    /// Ends the life of a removed worker's name once nothing of it is out any more.
    pub fn vacate(&mut self, index: u32) {
        let worker = &mut self.places[index as usize];
        if !worker.removed || worker.load.in_flight > 0 {
            return;
        }
        debug_assert!(worker.standing == Standing::Dead, "a removed worker is not dead");
        worker.vacant = true;
        if std::mem::take(&mut worker.told) != 0 {
            self.telling -= 1;
        }
        let slot = worker.link.cohort;
        if self.has_room(index) {
            self.withdraw(index);
        }
        let cohort = &mut self.cohorts[slot as usize];
        cohort.workers -= 1;
        if cohort.workers == 0 {
            self.order.retain(|&other| other != slot);
        }
    }

    /// Leaves a notice about a worker, once until it is taken. True for the first of all that wait: the time to ring.
    pub fn tell(&mut self, index: u32, notice: u8) -> bool {
        let worker = &mut self.places[index as usize];
        let silent = worker.told == 0;
        worker.told |= notice;
        self.telling += u32::from(silent);
        silent && self.telling == 1
    }

    /// Takes one notice.
    pub fn next_notice(&mut self) -> Option<Notice> {
        if self.telling == 0 {
            return None;
        }
        let index = self.places.iter().position(|worker| worker.told != 0)? as u32;
        let worker = &mut self.places[index as usize];
        let kind = worker.told.trailing_zeros() as usize;
        worker.told &= worker.told - 1;
        self.telling -= u32::from(worker.told == 0);
        Some(NOTICES[kind](self.id(index)))
    }

    /// The living workers.
    pub fn iter(&self) -> impl Iterator<Item = (WorkerId, &Worker)> {
        let living = self.places.iter().enumerate().filter(|(_, worker)| !worker.vacant);
        living.map(|(index, worker)| (self.id(index as u32), worker))
    }

    pub fn app_generation(&self, worker: &Worker) -> u32 {
        self.cohorts[worker.link.cohort as usize].app_generation
    }

    /// What is wrong with the lists, if anything.
    pub fn fault(&self) -> Option<&'static str> {
        let ready = self.places.iter().filter(|worker| worker.standing == Standing::Ready).count();
        if ready != self.eligible as usize {
            return Some("the eligible workers are miscounted");
        }
        if self.places.iter().filter(|worker| worker.told != 0).count() != self.telling as usize {
            return Some("the notices are miscounted");
        }
        for (index, worker) in self.places.iter().enumerate() {
            let fit = worker.standing == Standing::Ready && worker.load.has_capacity();
            if fit != (worker.link.level != NONE) {
                return Some("a worker is listed that may get nothing, or one with room is not");
            }
            if fit && worker.link.level != self.level_of(index as u32) {
                return Some("a worker stands in the wrong list");
            }
            if worker.load.in_flight > 0 && worker.load.in_flight > self.concurrency_of(index as u32) {
                return Some("a worker has more requests than it may");
            }
            if worker.load.upgrading > worker.load.in_flight {
                return Some("more requests for tunnels are in flight than requests");
            }
            if worker.vacant && worker.load.in_flight > 0 {
                return Some("a forgotten worker has requests");
            }
        }
        let generations = || self.order.iter().map(|&cohort| self.cohorts[cohort as usize].app_generation);
        if generations().zip(generations().skip(1)).any(|(newer, older)| newer <= older) {
            return Some("the cohorts are out of order");
        }
        self.order.iter().find_map(|&cohort| self.list_fault(cohort))
    }

    fn list_fault(&self, slot: u32) -> Option<&'static str> {
        let cohort = &self.cohorts[slot as usize];
        let mut listed = 0;
        let mut lowest = cohort.lists.len();
        for (level, list) in cohort.lists.iter().enumerate() {
            let (mut index, mut previous) = (list.head, NONE);
            while index != NONE {
                let worker = &self.places[index as usize];
                listed += 1;
                lowest = lowest.min(level);
                let strayed =
                    worker.link.cohort != slot || worker.link.level != level as u32 || worker.link.previous != previous;
                if strayed || listed > self.places.len() {
                    return Some("the lists of workers disagree");
                }
                (previous, index) = (index, worker.link.next);
            }
            if list.tail != previous {
                return Some("a list of workers has a wrong end");
            }
        }
        let mine = || self.places.iter().filter(|worker| !worker.vacant && worker.link.cohort == slot);
        if listed != mine().filter(|worker| worker.link.level != NONE).count() {
            return Some("a worker with room is out of reach");
        }
        if cohort.workers as usize != mine().count() {
            return Some("the workers of a generation are miscounted");
        }
        (lowest != cohort.lowest as usize).then_some("the lowest list is misremembered")
    }

    /// The cohort of an app generation; the lists are used if it is new and go back otherwise.
    fn cohort(&mut self, app_generation: u32, lists: Box<[List]>) -> (u32, Option<Box<[List]>>) {
        let held = self.order.iter().find(|&&slot| self.cohorts[slot as usize].app_generation == app_generation);
        if let Some(&slot) = held {
            return (slot, Some(lists));
        }
        let vacant = self.cohorts.iter().position(|cohort| cohort.workers == 0);
        let (slot, spare) = match vacant {
            Some(slot) => {
                // Its lists are empty, for its last worker left them; but they may be of another number.
                let cohort = &mut self.cohorts[slot];
                cohort.app_generation = app_generation;
                cohort.lowest = lists.len() as u32;
                (slot, Some(std::mem::replace(&mut cohort.lists, lists)))
            }
            None => {
                let lowest = lists.len() as u32;
                self.cohorts.push(Cohort { app_generation, workers: 0, lowest, lists });
                (self.cohorts.len() - 1, None)
            }
        };
        let newer = |&other: &u32| self.cohorts[other as usize].app_generation > app_generation;
        let place = self.order.partition_point(newer);
        self.order.insert(place, slot as u32);
        (slot as u32, spare)
    }

    /// The head of a cohort's lowest list.
    #[inline]
    fn lowest(&self, cohort: u32) -> Option<u32> {
        let cohort = &self.cohorts[cohort as usize];
        cohort.lists.get(cohort.lowest as usize).map(|list| list.head)
    }

    /// The list of a worker with room.
    #[inline]
    fn level_of(&self, index: u32) -> u32 {
        match self.balance {
            Balance::RoundRobin => 0,
            Balance::Lifo | Balance::Least => self.places[index as usize].load.in_flight,
        }
    }

    #[inline]
    fn link(&mut self, index: u32, level: u32, first: bool) {
        let cohort = &mut self.cohorts[self.places[index as usize].link.cohort as usize];
        cohort.lowest = cohort.lowest.min(level);
        let list = &mut cohort.lists[level as usize];
        let (previous, next) = if first { (NONE, list.head) } else { (list.tail, NONE) };
        match previous {
            NONE => list.head = index,
            _ => self.places[previous as usize].link.next = index,
        }
        match next {
            NONE => list.tail = index,
            _ => self.places[next as usize].link.previous = index,
        }
        let worker = &mut self.places[index as usize];
        debug_assert!(worker.link.level == NONE, "a worker is listed twice");
        let link = &mut worker.link;
        (link.level, link.previous, link.next) = (level, previous, next);
    }

    /// Takes a worker out of its list, and says whether that is empty now. The caller sees to the cohort's lowest level.
    #[inline]
    fn unlink(&mut self, index: u32) -> bool {
        let worker = &mut self.places[index as usize];
        let link = &mut worker.link;
        let (level, previous, next) = (link.level, link.previous, link.next);
        (link.level, link.previous, link.next) = (NONE, NONE, NONE);
        let list = &mut self.cohorts[worker.link.cohort as usize].lists[level as usize];
        match previous {
            NONE => list.head = next,
            _ => self.places[previous as usize].link.next = next,
        }
        match next {
            NONE => list.tail = previous,
            _ => self.places[next as usize].link.previous = previous,
        }
        previous == NONE && next == NONE
    }
}

impl Worker {
    /// Whether it is a child process of ours.
    pub fn is_supervised(&self) -> bool {
        self.target.as_ref().is_some_and(|target| target.supervised)
    }

    /// Whether nothing is under way in it that is waited for: a tunnel through a process of ours would end with that, while one through
    /// a server that something else runs, or through a process that is gone, is its own affair.
    pub fn is_done(&self) -> bool {
        let tunnels = self.load.tunnels > 0 && self.is_supervised() && self.standing != Standing::Dead;
        self.load.in_flight == 0 && !tunnels
    }

    /// Whether its next success or failure counts for more than that.
    #[inline]
    pub fn is_in_doubt(&self) -> bool {
        self.record.failures > 0 || self.load.on_trial()
    }
}
